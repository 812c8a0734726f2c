"""A whole machine in Bochs, for levels of the kernels that this processor lacks: Linux, this Python, torch and the tests.

    python proofs/emulated_processor/machine.py image --kernel-package linux-image-*.deb --out image.iso
    python proofs/emulated_processor/machine.py run --bochs DIR --image image.iso --model sapphire_rapids --job driver
    python proofs/emulated_processor/machine.py run ... --job "python -m pytest -q tests/kernels/test_int8.py"

Needs `xorriso isolinux syslinux-common busybox-static cpio` (Debian), a package of Debian's kernel (`apt-get download
linux-image-6.12...-amd64`; 5.16 or newer hands out the registers of AMX) and a built tree of Bochs, 3.0 or newer for AMX:
`python mend_bochs.py TREE`, then in it `./configure --enable-x86-64 --enable-avx --enable-evex --enable-amx
--enable-cpu-level=6 --enable-all-optimizations --enable-pci --with-nogui && make`.

The image holds the kernel, what this Python has installed and the libraries of this system, at the places where they are
here. A job travels beside it as a disk that is a tar: this repository's src, tests and proofs, and a script. What it prints
goes to the machine's serial port, and is printed here once it has stopped. `driver` compiles levels.cpp here and runs it
there; `choices` shows only which levels are chosen.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULES = ("scsi_common", "scsi_mod", "libata", "ata_piix", "cdrom", "sr_mod", "sd_mod", "isofs", "overlay")
TOOLS = ("/bin/sh", "/bin/bash", "/usr/bin/env", "/usr/bin/ldd", "/usr/bin/uname")

INIT = """#!/bin/busybox sh
export PATH=/bin HOME=/root; /bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /cd /rw /new
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in %s; do [ -f /modules/$m.ko ] && insmod /modules/$m.ko; done
i=0; while [ ! -b /dev/sr0 -o ! -b /dev/sda ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done
mount -t iso9660 -o ro /dev/sr0 /cd; mount -t tmpfs -o size=90%% tmpfs /rw; mkdir -p /rw/up /rw/work
mount -t overlay -o lowerdir=/cd/root,upperdir=/rw/up,workdir=/rw/work overlay /new
mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/job /new/root
for d in proc sys dev; do mount --move /$d /new/$d; done
mkdir -p /new/dev/shm; mount -t tmpfs shm /new/dev/shm
tar xf /new/dev/sda -C /new/job
exec chroot /new /bin/sh -c 'cd /job; sh run.sh >/dev/ttyS0 2>&1'
"""

# Bochs stops at the word Shutdown on port 0x8900; what was printed must have left the serial port.
SCRIPT = """export PATH={python}:/usr/bin HOME=/root PYTHONPATH=src:tests PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 {env}
( {job} )
echo "JOB ENDS $?"; sleep 2
for c in S h u t d o w n; do printf $c | dd of=/dev/port bs=1 seek=35072 conv=notrunc 2>/dev/null; done
sleep 60
"""

BOOT = """default a
label a
 kernel linux
 append initrd=initrd console=ttyS0 quiet mitigations=off panic=-1
"""
MAKE_DISC = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"]
MAKE_DISC += ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]

BOCHSRC = """
cpu: model={model}, count={cpus}, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file={bochs}/bios/BIOS-bochs-latest, options=fastboot
vgaromimage: file={bochs}/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
pci: enabled=1, chipset=i440fx
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, mode=flat, path={job}
ata1-master: type=cdrom, path={image}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
clock: sync=none
log: {log}
panic: action=fatal
error: action=ignore
info: action=report
display_library: nogui
"""


def tree(paths: list[Path], to: Path) -> None:
    """Copies of files and directories, at the places where they are."""
    for path in paths:
        target = to / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(path), str(target.parent)], check=True)


def initrd(package: Path, to: Path) -> Path:
    """Busybox, the modules for discs, and what starts the job; returns the kernel."""
    subprocess.run(["dpkg", "-x", str(package), str(to / "package")], check=True)
    root = to / "initrd"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin/busybox")
    for name in MODULES:
        for found in (to / "package").rglob(f"{name}.ko.xz"):
            (root / "modules" / f"{name}.ko").write_bytes(lzma.decompress(found.read_bytes()))
    (root / "init").write_text(INIT % " ".join(MODULES))
    (root / "init").chmod(0o755)
    names = "\n".join(str(p.relative_to(root)) for p in root.rglob("*"))
    pack = ["cpio", "-o", "-H", "newc"]
    archive = subprocess.run(pack, cwd=root, input=names.encode(), capture_output=True, check=True)
    (to / "disc/isolinux/initrd").write_bytes(archive.stdout)
    return next((to / "package/boot").glob("vmlinuz-*"))


def image(package: Path, out: Path) -> None:
    """A disc that boots, with this Python on it."""
    with tempfile.TemporaryDirectory(dir=out.resolve().parent) as held:
        to = Path(held)
        boot = to / "disc/isolinux"
        boot.mkdir(parents=True)
        shutil.copy(initrd(package, to), boot / "linux")
        for part in ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"):
            shutil.copy(part, boot)
        (boot / "isolinux.cfg").write_text(BOOT)
        root = to / "disc/root"
        for name in ("bin", "lib", "lib64", "sbin"):
            root.mkdir(exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")
            (root / "usr" / name).mkdir(parents=True)
        shared = [p for p in Path("/usr/lib/x86_64-linux-gnu").glob("*.so*") if not p.is_dir()]
        tree([*shared, *Path("/usr/lib64").glob("ld-*")], root)
        tree([Path("/usr/bin") / Path(t).name for t in TOOLS] + [Path("/usr/bin/dash"), Path("/etc/ld.so.cache")], root)
        shutil.copy(shutil.which("busybox") or "busybox", root / "usr/bin/busybox")
        for name in ("dd", "cat", "ls", "sleep", "mkdir", "rm", "dmesg", "printf"):
            (root / "usr/bin" / name).symlink_to("busybox")
        tree([Path(p) for p in dict.fromkeys((sys.base_prefix, sys.prefix))], root)
        subprocess.run([*MAKE_DISC, "-o", str(out), str(to / "disc")], check=True)


def pack_job(script: str, out: Path, extra: list[Path]) -> None:
    """The repository's own files and the script, as a tar that is a whole number of a disk's cylinders."""
    with tarfile.open(out, "w") as tar:
        for name in ("src", "tests", "proofs", "pyproject.toml"):
            tar.add(ROOT / name, name)
        for path in extra:
            tar.add(path, path.name)
        info = tarfile.TarInfo("run.sh")
        info.size = len(script.encode())
        tar.addfile(info, io.BytesIO(script.encode()))
    cylinder = 16 * 63 * 512
    os.truncate(out, -(-out.stat().st_size // cylinder) * cylinder)


def run(args: argparse.Namespace) -> int:
    """Starts the machine, waits until it stops, prints what the job printed."""
    with tempfile.TemporaryDirectory() as held:
        to = Path(held)
        serial, config, disk = args.serial or to / "serial", to / "bochsrc", to / "job.tar"
        extra, job = [], args.job
        if job in ("driver", "choices"):
            driver = to / "levels"
            subprocess.run(
                ["g++", "-O2", "-std=c++17", str(HERE / "levels.cpp"), "-ldl", "-o", str(driver)], check=True
            )
            extra, job = (
                [driver],
                f"OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ./levels $(ls src/triloop/kernels/_native*.so) {job}",
            )
        pack_job(SCRIPT.format(python=Path(sys.executable).parent, env=args.env, job=job), disk, extra)
        parts = {"job": disk, "image": args.image.resolve(), "serial": serial, "log": to / "log"}
        config.write_text(
            BOCHSRC.format(model=args.model, cpus=args.cpus, memory=args.memory, bochs=args.bochs.resolve(), **parts)
        )
        done = subprocess.run(
            ["nice", "-n", "15", str(args.bochs.resolve() / "bochs"), "-q", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=to,
        )
        text = Path(serial).read_text(errors="replace") if Path(serial).exists() else ""
        print(text)
        if "JOB ENDS 0" not in text:
            print(f"stopped with {done.returncode} before the job had ended well; its log:", file=sys.stderr)
            print((to / "log").read_text(errors="replace")[-3000:], file=sys.stderr)
            return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("image")
    make.add_argument("--kernel-package", type=Path, required=True)
    make.add_argument("--out", type=Path, required=True)
    start = commands.add_parser("run")
    start.add_argument("--bochs", type=Path, required=True, help="a built tree of Bochs")
    start.add_argument("--image", type=Path, required=True)
    start.add_argument("--model", default="sapphire_rapids", help="of the processor, as Bochs names it")
    start.add_argument("--cpus", type=int, default=1, help="more than one needs Bochs built with --enable-smp")
    start.add_argument("--memory", type=int, default=3072, help="MB")
    start.add_argument("--env", default="", help="NAME=VALUE ... for the job")
    start.add_argument("--serial", type=Path, help="where to keep what the machine prints")
    start.add_argument("--job", default="driver", help="a shell command in the repository, driver or choices")
    args = parser.parse_args()
    if args.command == "image":
        image(args.kernel_package, args.out)
        return 0
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
