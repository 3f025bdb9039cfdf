"""Everything that VLMEvalKit does for us: a process of its own, in the environment that `envs/vlmevalkit.sh` makes.

Importing VLMEvalKit turns off gradients and the verification of SSL certificates, seeds the random numbers and
configures logging: nothing that trains or predicts may import it. ``python -m eval.vlmevalkit`` lists what there is.
"""
