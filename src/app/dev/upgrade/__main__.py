"""`make upgrade [TO=commit-or-tag] [FROM=…] [DRY=1]`. `scripts/upgrade.py` fetches the remote, and runs this with the variables."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.dev.upgrade import git, migrations, notes, registry, versions
from app.dev.upgrade.apply import apply, current_branch, finish
from app.dev.upgrade.checks import UpgradeError, check_branch, check_clone
from app.dev.upgrade.merge import Merged, merge
from app.dev.upgrade.prepare import Sides, prepare

_REST = "git add --all && make setup docs && git add --all && git commit --no-edit && make check test"


def main(options: Mapping[str, str]) -> int:
    try:
        upgrade(options)
    except (UpgradeError, git.GitError) as error:
        sys.stderr.write(f"{error}\n")
    except KeyboardInterrupt:
        sys.stderr.write("\n".join(["The upgrade was interrupted.", *_way_back(), ""]))
    else:
        return 0
    return 1


@dataclass(frozen=True)
class Plan:
    base: str
    new: str
    branch: str
    sides: Sides
    merged: Merged
    joined: Sequence[str]
    """Migrations that follow another one now."""
    is_from_before_registry: bool
    replaced: Sequence[str]
    """Files from before the registry, whose changes do not arrive."""
    notes: Sequence[str]


def upgrade(options: Mapping[str, str]) -> None:
    os.chdir(git.git("rev-parse", "--show-toplevel"))
    check_clone()
    new = versions.resolve(options.get("TO") or "HEAD")
    base = new if git.is_ancestor(new, "HEAD") else versions.base(new, options.get("FROM", ""))
    if base == new:
        say(f"The clone is already up to date with {versions.short(new)}.")
        return
    planned = plan(base, new)
    if not options.get("DRY"):
        check_branch(planned.branch)
    show(planned)
    if not options.get("DRY"):
        carry_out(planned)


def plan(base: str, new: str) -> Plan:
    """Merge in memory."""
    base_files, new_files = git.read(base), git.read(new)
    sides = Sides(dict(base_files), git.read("HEAD"), dict(new_files))
    is_from_before_registry = registry.is_from_before(sides)
    replaced = registry.move_features(sides) if is_from_before_registry else []
    prepare(sides)
    merged = merge(sides)
    return Plan(
        base=base,
        new=new,
        branch=f"upgrade-{git.git('rev-parse', '--short', new)}",
        sides=sides,
        merged=merged,
        joined=migrations.join(merged, sides.clone, sides.new),
        is_from_before_registry=is_from_before_registry,
        replaced=replaced,
        notes=notes.for_clones(base_files, new_files),
    )


def show(planned: Plan) -> None:
    say(f"From {versions.short(planned.base)} to {versions.short(planned.new)}.")
    say(*(f"{path} now follows the newest migration of the clone." for path in planned.joined))
    say(*(f"{path} is left out, because the clone has deleted its folder." for path in planned.sides.left_out))
    conflicts = planned.merged.conflicts
    say(f"Conflicts: {len(conflicts)}", *(f"  {path}" for path in sorted(conflicts)))
    if planned.replaced:
        files = " ".join(planned.replaced)
        say(f"These files arrive whole. Your changes in them: git diff {planned.base[:10]} {_head()} -- {files}")
    if planned.notes:
        say("", "For clones, the changelog says:", "", *planned.notes, "")


def carry_out(planned: Plan) -> None:
    former = shlex.join(current_branch())
    message = f"Upgrade Bedplate from {versions.short(planned.base)} to {versions.short(planned.new)}"
    apply(planned.merged, planned.branch, planned.new, message)
    git.git("config", f"branch.{planned.branch}.upgradedFrom", former)
    if planned.merged.conflicts:
        say(f"Resolve the conflicts on the branch {planned.branch}. Then run:", f"  {_REST}", *_way_back())
        return
    try:
        finish(planned.sides, planned.merged, is_from_before_registry=planned.is_from_before_registry)
    except UpgradeError as error:
        raise UpgradeError("\n".join([str(error), f"To go on after that: {_REST}", *_way_back()])) from error
    say(f"The upgrade is committed on the branch {planned.branch}. {_next_step(planned)}", *_way_back())


def _next_step(planned: Plan) -> str:
    if planned.is_from_before_registry:
        return 'Now run: make check test. What fails is explained in docs/upgrading.md, "Replace names that changed".'
    return "Now run: make check test"


def _way_back() -> list[str]:
    """Return the commands that undo the upgrade, if it has begun."""
    branch = git.git("rev-parse", "--abbrev-ref", "HEAD")
    former = git.run("config", f"branch.{branch}.upgradedFrom", accept=(0, 1)).decode().strip()
    if not former:
        return ["Nothing has changed."]
    return [f"To go back: git reset --hard && git switch {former} && git branch -D {branch}"]


def _head() -> str:
    return git.git("rev-parse", "--short", "HEAD")


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(dict(argument.split("=", 1) for argument in sys.argv[1:])))
