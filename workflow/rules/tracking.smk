rule track:
    input:
        config=f"{PLAN.results}/config/track.json",
        frames=lambda w: plan.listing(PLAN.sets[w.set]),
        weights=lambda w: PLAN.weights(w.model),
        sources=plan.sources("track"),
    output:
        directory(f"{PLAN.results}/tracks/{{model}}/{{set}}"),
    log:
        f"{PLAN.results}/logs/track/{{model}}/{{set}}.log",
    benchmark:
        f"{PLAN.results}/benchmarks/track/{{model}}/{{set}}.tsv"
    # The base goes before the training, so that what would stop its own tracking and questions stops them at once.
    priority: lambda w: 10 if w.model == "base" else 0
    conda:
        "../../environment.yml"
    threads: lambda w: 1 if w.model in PLAN.peers else workflow.cores
    resources:
        gpu=lambda w: 0 if w.model in PLAN.peers else 1,
    params:
        model=lambda w: PLAN.model(w.model),
        root=lambda w: PLAN.sets[w.set],
        start=lambda w: PLAN.settings.track.start_of(w.set),
    message:
        "Tracking {wildcards.set} with {wildcards.model}"
    shell:
        "r1track --log {log} track --config {input.config} --model {params.model:q} --root {params.root:q}"
        " --out {output} --start {params.start}"


rule score:
    input:
        config=f"{PLAN.results}/config/score.json",
        frames=lambda w: plan.listing(PLAN.sets[w.set]),
        tracks=f"{PLAN.results}/tracks/{{model}}/{{set}}",
        sources=plan.sources("score"),
    output:
        f"{PLAN.results}/scores/{{model}}/{{set}}.json",
    log:
        f"{PLAN.results}/logs/score/{{model}}/{{set}}.log",
    benchmark:
        f"{PLAN.results}/benchmarks/score/{{model}}/{{set}}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    params:
        root=lambda w: PLAN.sets[w.set],
        draws=PLAN.settings.score.draws,
    message:
        "Scoring {wildcards.model} on {wildcards.set}"
    shell:
        "r1track --log {log} score --tracks {input.tracks} --root {params.root:q} --out {output} --draws {params.draws}"


rule submit:
    # GOT-10k's test split is not scored here: only the GOT-10k server has its true boxes.
    input:
        frames=lambda w: plan.listing(PLAN.sets[PLAN.test]),
        tracks=f"{PLAN.results}/tracks/{{model}}/{PLAN.test}",
        sources=plan.sources("submit"),
    output:
        f"{PLAN.results}/submission/{{model}}.zip",
    log:
        f"{PLAN.results}/logs/submit/{{model}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    params:
        root=lambda w: PLAN.sets[PLAN.test],
    message:
        "Packing the test tracks of {wildcards.model}"
    shell:
        "r1track --log {log} submit --tracks {input.tracks} --out {output} --root {params.root:q}"
