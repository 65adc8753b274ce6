rule vqa:
    input:
        config="results/{home}/config/vqa.json",
        weights=lambda w: PLANS[w.home].weights(w.model),
        pairs=lambda w: [] if w.model == "base" else PLANS[w.home].place("pairs"),
        questions=lambda w: PLANS[w.home].question_sources,
        sources=plan.sources("vqa"),
    output:
        directory("results/{home}/vqa/{model}"),
    log:
        "results/{home}/logs/vqa/{model}.log",
    benchmark:
        "results/{home}/benchmarks/vqa/{model}.tsv"
    wildcard_constraints:
        model="base|sft|grpo",
    priority: lambda w: 10 if w.model == "base" else 0  # see the rule `track`
    threads: lambda w: PLANS[w.home].cores(CORES)
    resources:
        gpu=cards_of,
    params:
        model=lambda w: PLANS[w.home].model(w.model),
        # For the KL divergence of an arm from the base, on held-out pairs.
        pairs=lambda w, input: f"--pairs {input.pairs}" if input.pairs else "",
    message:
        "Asking {wildcards.model} general questions"
    shell:
        "r1track --log {log} vqa --config {input.config} --model {params.model:q} --out {output} {params.pairs}"


rule verdict:
    input:
        config="results/{run}/config/verdict.json",
        base="results/{run}/vqa/base",
        tuned=lambda w: expand(
            "results/{run}/vqa/{arm}", run=w.run, arm=PLANS[w.run].arms
        ),
        sources=plan.sources("verdict"),
    output:
        "results/{run}/vqa/verdict.json",
    log:
        "results/{run}/logs/verdict.log",
    benchmark:
        "results/{run}/benchmarks/verdict.tsv"
    threads: 1
    params:
        tuned=lambda w, input: [f"--tuned {folder}" for folder in input.tuned],
    message:
        "Comparing general ability before and after"
    shell:
        "r1track --log {log} verdict --config {input.config} --base {input.base} {params.tuned} --out {output}"


rule gate:
    # After the report, and in a study after the comparison: with verdict.on_regression `fail`, a loss of general ability of the last arm is an error.
    input:
        verdict="results/{run}/vqa/verdict.json",
        report=STUDY.page or "results/{run}/report/index.html",
    output:
        touch("results/{run}/vqa/kept"),
    log:
        "results/{run}/logs/gate.log",
    params:
        on_regression=lambda w: PLANS[w.run].settings.verdict.on_regression,
    message:
        "Checking that general ability is retained"
    shell:
        "r1track --log {log} gate --verdict {input.verdict} --on-regression {params.on_regression}"
