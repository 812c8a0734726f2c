from triloop.records import Feedback, Prompt
from triloop.sources.judge import EnvJudge, JudgedBy


class Env:
    name, max_tokens, stop, levels = "toy", 3, (), (0,)

    def prompts(self, split, n, *, seed, start=0, level=None):
        return [Prompt(id=f"{split}{start + i}", text="") for i in range(n)]

    def judge(self, prompts, texts):
        return [Feedback(value=1.0 if "a" in t else -1.0, source="env:toy") for t in texts]

    def right_answer(self, prompt):
        return "a"

    def wrong_answers(self, prompt):
        return ["b"]


class Contrary:
    name = "contrary"

    def judge(self, prompts, texts):
        return [Feedback(value=-1.0 if "a" in t else 1.0, source=self.name) for t in texts]


def test_an_environment_as_a_judge():
    judge = EnvJudge(Env())
    assert judge.name == "env:toy"
    assert [f.value for f in judge.judge(Env().prompts("train", 2, seed=0), ["a", "b"])] == [1.0, -1.0]


def test_an_environment_judged_by_another():
    env = JudgedBy(Env(), Contrary())
    prompts = env.prompts("eval", 1, seed=0, start=4)
    assert prompts[0].id == "eval4" and env.honest
    assert env.judge(prompts, ["a"])[0].value == env.gold(prompts, ["a"])[0].value == -1.0
    assert (env.right_answer(prompts[0]), env.wrong_answers(prompts[0])) == ("a", ["b"])
