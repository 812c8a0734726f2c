"""What Bochs 3.0's AMX lacks before Linux and a signed product can use it: `python mend_bochs.py BOCHS_TREE`, then build.

Found at commit 783b58f of its repository. Each of these showed itself here:
- products of signed bytes take them as unsigned (TDPBSSD, TDPBSUD, TDPBUSD);
- XSAVE swaps a tile's rows and its bytes a row, and takes used tiles for unused: a task's tiles are lost when another runs;
- there is no XFD (extended feature disable, SDM volume 1, 13.14), without which Linux hands out no tiles: its registers
  0x1c4 and 0x1c5, the exception at the first use of a tile, and what CPUID says of it.
Edits go by a text that stands once in its file (or in a stretch of it); where one does not, Bochs has changed: look again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FORBIDDEN = """  if (BX_CPU_THIS_PTR msr.ia32_xfd & BX_XCR0_XTILEDATA_MASK) {
    BX_CPU_THIS_PTR msr.ia32_xfd_err |= BX_XCR0_XTILEDATA_MASK;
    exception(BX_NM_EXCEPTION, 0);
  }
"""
NAMES = (("XFD", "ia32_xfd"), ("XFD_ERROR", "ia32_xfd_err"))
DESCRIBED = "".join(
    f'  msr_desc[BX_MSR_IA32_{name}] = new MSR_Descriptor("IA32_{name}", BX_ISA_AMX, ~Bit64u(BX_XCR0_XTILEDATA_MASK));\n'
    for name, _ in NAMES
)
READ = "".join(f"    case BX_MSR_IA32_{name}: val64 = BX_CPU_THIS_PTR msr.{field}; break;\n" for name, field in NAMES)
WRITTEN = "".join(
    f"    case BX_MSR_IA32_{name}: BX_CPU_THIS_PTR msr.{field} = val_64; break;\n" for name, field in NAMES
)

EDITS: list[tuple[str, str, str]] = [
    # file, pattern, what takes its place
    ("avx/amx.h", r"start_row\(0\) \{\}", r"start_row(0), tile_use_tracker(0) {}"),
    ("avx/amx.cc", r"(?s)(::check_tile\(.*?\n)\}\n", rf"\g<1>{FORBIDDEN}}}\n"),
    ("avx/amx.cc", r"( *BX_CPU_THIS_PTR amx->clear_tile_used\(tile\);\n)", rf"{FORBIDDEN}\g<1>"),
    ("cpu.h", r"(  Bit64u ia32_xss;\n)", r"\g<1>  Bit64u ia32_xfd, ia32_xfd_err;\n"),
    (
        "init.cc",
        r"(msr\.ia32_xss = 0;\n)",
        r"\g<1>  BX_CPU_THIS_PTR msr.ia32_xfd = BX_CPU_THIS_PTR msr.ia32_xfd_err = 0;\n",
    ),
    ("msr.cc", r"(get_ia32_xss_allow_mask\(\)\)\);\n)", rf"\g<1>{DESCRIBED}"),
    ("msr.cc", r"( *case BX_MSR_XSS:\n)", rf"{READ}\g<1>"),
    ("msr.cc", r"( *case BX_MSR_XSS: //)", rf"{WRITTEN}\g<1>"),
    (
        "cpuid.cc",
        r"(leaf->eax \|= \(1<<3\);\n)(?=\n    // EBX)",
        r"\g<1>    if (is_cpu_extension_supported(BX_ISA_AMX)) leaf->eax |= 1<<4;\n",
    ),
    ("crregs.cc", r"(XTILEDATA_BIT\]\.attr +=) BX_XSAVE_ALIGN64;", r"\g<1> BX_XSAVE_ALIGN64 | BX_XSAVE_XFD_SUPPORT;"),
    ("xsave.cc", r"(vmm16u\(8\+n\) .*)\.rows;", r"\g<1>.bytes_per_row;"),
    ("xsave.cc", r"(vmmubyte\(48\+n\) .*)\.bytes_per_row;", r"\g<1>.rows;"),
    (
        "xsave.cc",
        r"amx->tile_use_tracker == 0\)",
        "amx->tile_use_tracker != 0 && ! (BX_CPU_THIS_PTR msr.ia32_xfd & BX_XCR0_XTILEDATA_MASK))",
    ),
]


def signed(text: str, function: str, operand: str) -> str:
    """`operand` taken as signed bytes in this function."""
    begin = text.index(f"Bit32u {function}(")
    end = text.index("\n}\n", begin)
    body, times = re.subn(rf"Bit32s\({operand}\[", f"Bit32s((Bit8s){operand}[", text[begin:end])
    assert times == 4, f"{function} is not as it was"
    return text[:begin] + body + text[end:]


def main() -> None:
    cpu = Path(sys.argv[1]) / "cpu"
    for name, pattern, instead in EDITS:
        path = cpu / name
        text, times = re.subn(pattern, instead, path.read_text(encoding="latin-1"))
        assert times == 1, f"{name}: {pattern} found {times} times"
        path.write_text(text, encoding="latin-1")
    path = cpu / "avx/amx.cc"
    text = path.read_text(encoding="latin-1")
    for function, operands in (("DPBDSS", ("xbyte", "ybyte")), ("DPBDSU", ("xbyte",)), ("DPBDUS", ("ybyte",))):
        for operand in operands:
            text = signed(text, function, operand)
    path.write_text(text, encoding="latin-1")


if __name__ == "__main__":
    main()
