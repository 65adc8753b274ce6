rule part:
    # With track.parts above 1: some of the sequences, as a job of its own. `track` joins them.
    input:
        config="results/{home}/config/track.json",
        frames=lambda w: plan.listing(PLANS[w.home].sets[w.set]),
        weights=lambda w: PLANS[w.home].weights(w.model),
        sources=plan.sources("track"),
    output:
        temp(directory("scratch/{home}/parts/{model}/{set}/{part}")),
    log:
        "results/{home}/logs/track/{model}/{set}.{part}.log",
    wildcard_constraints:
        part=r"\d+",
    threads: lambda w: PLANS[w.home].cores(CORES)
    resources:
        gpu=cards_of,
    params:
        model=lambda w: PLANS[w.home].model(w.model),
        root=lambda w: PLANS[w.home].sets[w.set],
        start=lambda w: PLANS[w.home].settings.track.start_of(w.set),
    message:
        "Tracking part {wildcards.part} of {wildcards.set} with {wildcards.model}"
    shell:
        "r1track --log {log} track --config {input.config} --model {params.model:q} --root {params.root:q}"
        " --out {output} --start {params.start} --part {wildcards.part}"


rule track:
    input:
        config="results/{home}/config/track.json",
        frames=lambda w: plan.listing(PLANS[w.home].sets[w.set]),
        weights=lambda w: PLANS[w.home].weights(w.model),
        parts=lambda w: PLANS[w.home].parts(w.model, w.set),
        sources=plan.sources("track"),
    output:
        directory("results/{home}/tracks/{model}/{set}"),
    log:
        "results/{home}/logs/track/{model}/{set}.log",
    benchmark:
        "results/{home}/benchmarks/track/{model}/{set}.tsv"
    # The base goes before the training, so that what would stop its own tracking and questions stops them at once.
    priority: lambda w: 10 if w.model == "base" else 0
    threads: lambda w: 1 if w.model in PLANS[w.home].peers else PLANS[w.home].cores(CORES)
    resources:
        gpu=lambda w, input: (
            0 if w.model in PLANS[w.home].peers or input.parts else cards_of(w)
        ),
    params:
        model=lambda w: PLANS[w.home].model(w.model),
        root=lambda w: PLANS[w.home].sets[w.set],
        start=lambda w: PLANS[w.home].settings.track.start_of(w.set),
        parts=lambda w, input: [f"--join {part}" for part in input.parts],
    message:
        "Tracking {wildcards.set} with {wildcards.model}"
    shell:
        "r1track --log {log} track --config {input.config} --model {params.model:q} --root {params.root:q}"
        " --out {output} --start {params.start} {params.parts}"


rule score:
    input:
        config="results/{run}/config/score.json",
        frames=lambda w: plan.listing(PLANS[w.run].sets[w.set]),
        tracks="results/{run}/tracks/{model}/{set}",
        sources=plan.sources("score"),
    output:
        "results/{run}/scores/{model}/{set}.json",
    log:
        "results/{run}/logs/score/{model}/{set}.log",
    benchmark:
        "results/{run}/benchmarks/score/{model}/{set}.tsv"
    threads: 1
    params:
        root=lambda w: PLANS[w.run].sets[w.set],
        draws=lambda w: PLANS[w.run].settings.score.draws,
    message:
        "Scoring {wildcards.model} on {wildcards.set}"
    shell:
        "r1track --log {log} score --tracks {input.tracks} --root {params.root:q} --out {output} --draws {params.draws}"


rule submit:
    # GOT-10k's test split is not scored here: only the GOT-10k server has its true boxes.
    input:
        frames=lambda w: plan.listing(PLANS[w.run].sets[PLANS[w.run].test]),
        tracks=lambda w: f"results/{w.run}/tracks/{w.model}/{PLANS[w.run].test}",
        sources=plan.sources("submit"),
    output:
        "results/{run}/submission/{model}.zip",
    log:
        "results/{run}/logs/submit/{model}.log",
    threads: 1
    params:
        root=lambda w: PLANS[w.run].sets[PLANS[w.run].test],
    message:
        "Packing the test tracks of {wildcards.model}"
    shell:
        "r1track --log {log} submit --tracks {input.tracks} --out {output} --root {params.root:q}"
