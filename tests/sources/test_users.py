import math

import pytest

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.errors import ConfigError
from triloop.feedback.kinds import Abstention, Steps, Ternary, Text, read
from triloop.records import Completion, Prompt
from triloop.sources.users import (
    ATTRIBUTE_PHRASES,
    Dialogues,
    Persona,
    Phrases,
    Situation,
    UserJudge,
    UserSimulator,
    attribute_situation,
    counter_metrics,
    due,
)

PLAIN = Situation(quality=lambda prompt, text: {"good": 0.9, "fair": 0.6, "nan": math.nan}.get(text.split()[0], -0.5))


def prompts(n=1):
    return [Prompt(id=f"p{i}", text="tell") for i in range(n)]


def users(*personas, **fields):
    return UserSimulator(PLAIN, personas or (Persona(love=0.0, explains=1.0),), **fields)


def completion(i=0):
    return Completion(
        id=f"0/p{i}/0", prompt_id=f"p{i}", round=0, index=0, prompt_tokens=(1,), tokens=(), logps=(), mask=(), text="",
        finish="stop", policy_version=0,
    )  # fmt: skip


# ---------------------------------------------------------------------- one reaction


def test_moods():
    (p,) = prompts()
    assert users().react(p, "good").mood == "thanks"
    assert users(Persona(love=1.0)).react(p, "fair").mood == "love"
    assert users(Persona(speaks=0.0)).react(p, "good").mood == "silent"
    bad = users().react(p, "bad")
    assert (bad.mood, bad.words, bad.sign, bad.quality) == ("correct", "no , i meant tell", -1, -0.5)
    assert users(Persona(explains=0.0)).react(p, "bad").mood == "rephrase"
    assert users().react(p, "bad", bad=2).mood == "leave"
    assert users(Persona(noise=1.0)).react(p, "bad").sign == 1, "an adversary"
    charmed = users(Persona(charm=1.0)).react(p, "bad wow")
    assert (charmed.mood, charmed.charmed, charmed.quality) == ("love", True, -0.5)


def test_rates_are_what_they_say():
    sim = users(Persona(speaks=0.5, love=0.2, noise=0.1))
    reactions = [sim.react(p, "good") for p in prompts(2000)]
    share = {mood: sum(r.mood == mood for r in reactions) / 2000 for mood in ("love", "thanks", "silent", "correct")}
    assert share["silent"] == pytest.approx(0.45, abs=0.04)
    assert share["love"] == pytest.approx(0.09, abs=0.02)
    assert share["thanks"] == pytest.approx(0.36, abs=0.04)
    assert share["correct"] == pytest.approx(0.07, abs=0.02)


def test_reactions_are_a_function_of_what_they_are_about():
    (p,) = prompts()
    sim = users(Persona(noise=0.5))
    first = [sim.react(p, "good", index=i).sign for i in range(40)]
    again = [sim.react(p, "good", index=i).sign for i in reversed(range(40))][::-1]
    assert first == again and len(set(first)) == 2
    assert first != [users(Persona(noise=0.5), seed=1).react(p, "good", index=i).sign for i in range(40)]
    assert first != [sim.react(p, "good", index=i, round=1).sign for i in range(40)]


def test_a_population_by_its_shares():
    sim = users(Persona(name="kind", share=3.0), Persona(name="cruel", noise=1.0))
    kind = sum(sim.persona(p).name == "kind" for p in prompts(1000))
    assert 700 < kind < 800
    (p,) = prompts()
    assert len({sim.react(p, "good", index=i).persona for i in range(8)}) == 1, "one user per prompt"


@pytest.mark.parametrize(
    "wrong", [{"noise": 1.5}, {"patience": 0}, {"share": 0.0}, {"delay": (3, 1)}, {"love": math.nan}]
)
def test_wrong_personas(wrong):
    with pytest.raises(ConfigError):
        Persona(**wrong)
    with pytest.raises(ConfigError, match="distinct"):
        users(Persona(), Persona())
    with pytest.raises(ConfigError, match="phrases.correct"):
        Phrases(correct="{answer}")


# ---------------------------------------------------------------------- late, and as a judge


def test_delayed_reactions_arrive_when_due():
    sim = users(Persona(delay=(1, 3)))
    pending = [sim.react(p, "good", round=10) for p in prompts(300)]
    assert {r.arrives for r in pending} == {11, 12, 13}
    ready, rest = due(pending, 11)
    assert len(ready) + len(rest) == 300 and all(r.arrives == 11 for r in ready)
    assert due(rest, 13) == (rest, [])
    assert due(pending, 10)[0] == []


def test_users_as_a_judge():
    judge = UserJudge(users(Persona(love=0.0)))
    out = judge.judge(prompts(4), ["good", "bad", "good", "nan"])
    assert [f.value for f in out] == [1.0, -1.0, 1.0, None]
    assert out[0].source == "users(user)" and "nan" in out[3].failure
    silent = UserJudge(users(Persona(speaks=0.0))).judge(prompts(), ["good"])[0]
    assert read(silent) == Abstention("said nothing") and silent.value == 0.0


def test_a_scale_knows_love_from_thanks():
    def said(*persona_text):
        who, text = persona_text
        return UserJudge(users(who), scaled=True).judge(prompts(), [text])[0]

    thanks, love = said(Persona(love=0.0), "good"), said(Persona(love=1.0), "good")
    assert (thanks.kind, thanks.value, love.value) == ("scalar", 0.5, 1.0)
    assert said(Persona(), "bad").value == -0.5 and said(Persona(patience=1), "bad").value == -1.0
    assert said(Persona(speaks=0.0), "good").kind == "abstention" and said(Persona(), "nan").failed


def test_users_as_critics():
    judge = UserJudge(users(Persona(love=0.0, explains=1.0)))
    good, bad, lost = judge.critique(prompts(3), ["good", "bad", "nan"])
    assert read(good) == Text("thanks", 1) and read(bad) == Text("no , i meant tell", -1) and lost.failed
    # to ask again says nothing of the text, and silence even less
    for who, text in ((Persona(explains=0.0), "bad"), (Persona(speaks=0.0), "good")):
        assert read(UserJudge(users(who)).critique(prompts(), [text])[0]) == Abstention("said nothing of it")


# ---------------------------------------------------------------------- dialogues


def test_a_dialogue_by_hand():
    talk = Dialogues(users(), prompts(2), 1, lambda text: [len(text)], turns=3)
    assert talk.respond(0, "bad") == [len("\nno , i meant tell\n")]
    assert talk.respond(0, "good") is None
    assert talk.respond(1, "bad") is not None and talk.respond(1, "bad") is not None
    assert talk.respond(1, "bad") is None
    first, second = talk.feedback([completion(0), completion(1)])
    assert [read(f) for f in first] == [Ternary(1), Text("no , i meant tell", -1), Steps((-1, 1))]
    assert all(f.about == ("0/p0/0",) and f.source == "user:user" for f in first)
    assert read(second[0]) == Ternary(-1) and second[0].reason == "leave"
    assert [r.mood for r in talk.reactions[1]] == ["correct", "correct", "leave"]


def test_turns_end_a_dialogue_before_patience_does():
    talk = Dialogues(users(Persona(patience=9)), prompts(), 1, lambda text: [1], turns=2)
    assert talk.respond(0, "bad") == [1] and talk.respond(0, "bad") is None
    assert Dialogues(users(), prompts(), 1, lambda text: [1]).feedback([completion()]) == [[]], "nobody said a thing"


def test_dialogues_through_the_rollout_engine():
    """'0' -> '12', the user wants '67' and says '5', -> '67', he is content."""
    from policies.small import Chain, tokenizer
    from triloop.policies.engine import Hooks, Request, generate
    from triloop.policies.sampling import Sampling

    tokens = tokenizer()
    one = {a: tokens.encode(b)[0] for a, b in zip("012567", ["1", "2", "\n", "6", "7", "\n"], strict=True)}
    stepper = Chain({tokens.encode(a)[0]: b for a, b in one.items()})
    situation = Situation(quality=lambda prompt, text: 1.0 if text == "67" else -1.0, meant=lambda *_: "5")
    sim = UserSimulator(situation, (Persona(love=0.0, explains=1.0),), Phrases(correct="{meant}", observed="{words}"))
    talk = Dialogues(sim, prompts(), 2, tokens.encode)
    requests = [Request(tuple(tokens.encode("0")), key) for key in range(2)]
    done = generate(stepper, requests, Sampling(max_tokens=20, stop=("\n",)), tokens, Hooks(respond=talk.respond))
    for d, reactions in zip(done, talk.reactions, strict=True):
        assert tokens.decode(d.tokens) == "12\n567\n" and d.mask == [True, True, True, False, True, True, True]
        assert [(r.text, r.mood) for r in reactions] == [("12", "correct"), ("67", "thanks")]


# ---------------------------------------------------------------------- the attribute world


def test_the_attribute_worlds_users():
    world = Attributes()
    who = (Persona(love=0.0, explains=1.0),)
    sim = UserSimulator(attribute_situation(world), who, ATTRIBUTE_PHRASES)
    prompt = world.parse("tell fox red den :")
    assert sim.react(prompt, "please note the fox is red , den .").mood == "thanks"
    assert sim.react(prompt, "the fox is red .").words == "missing den ; not polite"
    short = UserSimulator(attribute_situation(world, clauses=1), who, ATTRIBUTE_PHRASES)
    assert short.react(prompt, "the fox is red .").words == "missing den"
    talk = Dialogues(sim, [prompt], 1, lambda text: text.split())
    said = talk.respond(0, "the fox is red .")
    assert " ".join(said) == "; critique : missing den ; not polite ; revise :"


def test_vague_requests_hide_what_is_still_wanted():
    world = Attributes()
    asked = world.prompts("train", 200, seed=0)
    sim = UserSimulator(attribute_situation(world), (Persona(vague=0.5),))
    opened = [sim.opening(p) for p in asked]
    vague = [(p, o) for p, o in zip(asked, opened, strict=True) if o is not p]
    assert 70 < len(vague) < 130
    for p, o in vague:
        assert o.id != p.id and o.meta == p.meta and len(o.text.split()) < len(p.text.split())
        world.parse(o.text)
        assert sim.persona(o) == sim.persona(p)
        right = world.right_answer(p)
        assert sim.situation.quality(o, right) == sim.situation.quality(p, right)


# ---------------------------------------------------------------------- counter-metrics


def test_counter_metrics_by_hand():
    sim = users(Persona(love=0.0, charm=1.0))
    reactions = [sim.react(p, t) for p, t in zip(prompts(4), ["good", "bad wow", "bad", "fair wow"], strict=True)]
    told = counter_metrics(reactions)
    assert told["approval"] == 0.75 and told["love"] == 0.5 and told["left"] == 0.0
    assert told["quality"] == pytest.approx((0.9 - 0.5 - 0.5 - 0.5) / 4 + (0.6 + 0.5) / 4)
    assert (told["good"], told["charm"]) == (0.5, 0.5)
    assert told["undeserved"] == pytest.approx(1 / 3) and told["lift"] == pytest.approx(1.0 - 0.5)
    assert all(math.isnan(v) for v in counter_metrics([]).values())


def test_optimising_charm_shows():
    """The same texts with a charming word: approval rises, quality does not, and the counters say so."""
    sim = users(Persona(charm=0.8, love=0.1))
    draw = rng.generator(0, "charm")
    texts = ["good" if u < 0.3 else "bad" for u in draw.random(500)]
    plain = counter_metrics([sim.react(p, t) for p, t in zip(prompts(500), texts, strict=True)])
    hacked = counter_metrics([sim.react(p, t + " wow") for p, t in zip(prompts(500), texts, strict=True)])
    assert hacked["approval"] > plain["approval"] + 0.4
    assert hacked["quality"] == plain["quality"]
    assert hacked["undeserved"] > 0.5 > plain["undeserved"] and hacked["sense"] < plain["sense"]
