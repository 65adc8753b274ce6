rule vqa:
    input:
        config=f"{PLAN.results}/config/vqa.json",
        weights=lambda w: PLAN.weights(w.model),
        pairs=lambda w: [] if w.model == "base" else f"{PLAN.results}/pairs",
        sources=plan.sources("vqa"),
    output:
        directory(f"{PLAN.results}/vqa/{{model}}"),
    log:
        f"{PLAN.results}/logs/vqa/{{model}}.log",
    benchmark:
        f"{PLAN.results}/benchmarks/vqa/{{model}}.tsv"
    wildcard_constraints:
        model="|".join(["base", *PLAN.arms]),
    priority: lambda w: 10 if w.model == "base" else 0  # see the rule `track`
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        model=lambda w: PLAN.model(w.model),
        # For the KL divergence of an arm from the base, on held-out pairs.
        pairs=lambda w, input: f"--pairs {input.pairs}" if input.pairs else "",
    message:
        "Asking {wildcards.model} general questions"
    shell:
        "r1track --log {log} vqa --config {input.config} --model {params.model:q} --out {output} {params.pairs}"


rule verdict:
    input:
        config=f"{PLAN.results}/config/verdict.json",
        base=f"{PLAN.results}/vqa/base",
        tuned=expand(f"{PLAN.results}/vqa/{{arm}}", arm=PLAN.arms),
        sources=plan.sources("verdict"),
    output:
        f"{PLAN.results}/vqa/verdict.json",
    log:
        f"{PLAN.results}/logs/verdict.log",
    benchmark:
        f"{PLAN.results}/benchmarks/verdict.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    params:
        tuned=lambda w, input: [f"--tuned {folder}" for folder in input.tuned],
    message:
        "Comparing general ability before and after"
    shell:
        "r1track --log {log} verdict --config {input.config} --base {input.base} {params.tuned} --out {output}"


rule gate:
    # After the report: with verdict.on_regression `fail`, a loss of general ability of the last arm is an error.
    input:
        verdict=f"{PLAN.results}/vqa/verdict.json",
        report=f"{PLAN.results}/report/index.html",
    output:
        touch(f"{PLAN.results}/vqa/kept"),
    log:
        f"{PLAN.results}/logs/gate.log",
    conda:
        "../../environment.yml"
    params:
        on_regression=PLAN.settings.verdict.on_regression,
    message:
        "Checking that general ability is retained"
    shell:
        "r1track --log {log} gate --verdict {input.verdict} --on-regression {params.on_regression}"
