"""Compose files read for a swarm: text -> tree with positions -> project -> the specs a swarm should have -> a plan.

Owns our reading of the compose specification (compose-spec/compose-spec, and the v3.0 to v3.13 files `docker stack`
takes) and what a deploy would change. Pure: files, environment and the swarm's state are handed in. Must not read
a disk or talk to a daemon; cli/ does.

    tree         YAML with positions            merge        several files as one
    interpolate  $VARIABLES                     load         include, extends, profiles
    reader, read, deploy, shorthand, keys       tree -> project (project.py)
    desired      project -> specs               versions     secrets and configs as versions of one name
    order        depends_on                     words        a spec in the file's words
    plan         desired against actual
"""
