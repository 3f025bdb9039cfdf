rule benchmark_pope:
    output:
        R / "benchmarks/POPE.tsv",
    log:
        R / "logs/benchmarks/POPE.log",
    params:
        preset=PRESET,
        settings=digest({"corpus": preset.corpus, "benchmark": preset.benchmarks.get("POPE")}),
    shell:
        "python -m eval benchmark POPE --preset {params.preset} --out {output} > {log} 2>&1"
