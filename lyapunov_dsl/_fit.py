"""The training loop: Optax, one jitted and donated step, progress, checkpoints, and a stop at the first NaN."""

import contextlib
import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from ._check import check_data
from ._checkpoint import Folder, fingerprint
from ._coarse import warn_of_coarse_steps
from ._compile import Program
from ._fit_checks import LOOK, before_augmentation, check_arguments, check_mask, check_pair
from ._infer import end_to_end_out_of_steps
from ._mesh import Team
from ._run import Run, interrupts
from ._save import program_header, stored, structure, with_stored
from ._step import advance, advance_many, update_of
from ._trainable import join_trainable, split_trainable


class NonFiniteError(FloatingPointError):
    """Training met a NaN or an Inf.

    **Arguments:**

    - `message`: the step and what to do next.
    - `result`: a [`lyapunov_dsl.FitResult`][] with the program as it was before that step, or that of the best epoch where `fit`
        selects it; from [`lyapunov_dsl.synthesize`][] a [`lyapunov_dsl.Synthesis`][] with the rounds before.
    """

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


class Interrupted(KeyboardInterrupt):
    """Training was ended by Ctrl-C.

    **Arguments:**

    - `message`: how far it was.
    - `result`: a [`lyapunov_dsl.FitResult`][] with the program and the history so far; from
        [`lyapunov_dsl.synthesize`][] a [`lyapunov_dsl.Synthesis`][] with the rounds before.
    """

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


class FitResult(eqx.Module):
    """What training returns.

    **Arguments:**

    - `program`: the trained program.
    - `history`: one dictionary an epoch: `epoch`, `step`, `loss` (mean over the epoch), `seconds` (training alone,
        the first epoch's compilation included), and `validation` where validation data was given.
    - `status`: `"done"`, or what stopped training.
    - `selected`: the epoch that `program` is from, where it was selected by its validation error.
    """

    program: Program
    history: list[dict[str, int | float]]
    status: str = eqx.field(static=True)
    selected: int | None = eqx.field(static=True, default=None)


def fit(
    program: Program,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    key: Any,
    validation: Any = None,
    select: str = "last",
    batch_size: int = 64,
    augment: Any = None,
    steps_per_dispatch: Any = None,
    trainable: Any = None,
    mesh: Any = None,
    folder: Any = None,
    checkpoint_every: Any = 30.0,
    progress: bool = True,
    throw: bool = True,
) -> FitResult:
    """Trains a program. The program that was given stays as it is.

    Every epoch visits the data once in a new order; a last batch that is not full is left for the next epoch. The key
    of a step depends on `key` and the number of the step alone.

    With `folder`, a run that was ended in any way goes on where its last checkpoint is when the same call is made again,
    through the same numbers as if it had not been interrupted. One run at a time has a folder; a second is refused (not on
    Windows). Ctrl-C ends the step, writes a checkpoint and stops; pressed twice, it stops at once. Another number of
    devices may go on with a checkpoint. The optimizer is code and is not stored, and neither are closures and other objects
    that are no PyTrees: only the structure of its state can be compared, so give the same one, schedule included.

    **Arguments:**

    - `program`: a [`lyapunov_dsl.Program`][].
    - `data`: a pair (x, y) with a leading batch axis, y `None` without targets.
    - `optimizer`: an Optax optimizer. Those that ask for the loss and the gradient are given them; line searches see the
        loss of the batch.
    - `epochs`, `batch_size`: positive whole numbers; a batch is the whole data set where that is smaller.
    - `key`: a PRNG key.
    - `validation`: another pair; its error ([`lyapunov_dsl.Program.error`][]) is shown and kept after every epoch.
    - `select`: which program is returned: `"last"`, or `"best"` for that of the epoch with the least validation error,
        the latest of several.
    - `augment`: a function (x, key) of one example of the data, such as [`lyapunov_dsl.data.Augment`][], which returns
        what the program takes. It runs within the step, on the batch, with a key for every example; so images can stay on
        the device as uint8. Validation data is not augmented.
    - `steps_per_dispatch`: how many steps are one call of the device: by default 1 on a CPU, where a convolution in a loop
        is many times slower, and 16 elsewhere.
    - `trainable`: what is trained, made by [`lyapunov_dsl.trainable`][] with `freeze`; by default all floating-point JAX arrays
        of the system and the certificate. One array that stands at several places is one parameter and stays one. NumPy
        arrays are constants.
    - `mesh`: a `jax.sharding.Mesh` with one axis of type Auto, over whose devices every batch is split; `batch_size` is
        that of all of them together. Losses are those of one device up to rounding. Parameters and data are on every device.
        Its devices may belong to several processes (`jax.distributed`), which then all make the same call: the first one
        writes the folder and shows the progress bar, and all return the program. They stop together: after Ctrl-C in any of
        them, where the 64 steps or the epoch end.
    - `folder`: where to keep `checkpoint.npz` (for [`lyapunov_dsl.load`][], too) and `metrics.jsonl`: one line every 64
        steps (`"record": "steps"`, the mean loss since the last line) and one an epoch (`"record": "epoch"`, as in the
        history). Nothing is written without it.
    - `checkpoint_every`: seconds between checkpoints, at least; 0 for one every 64 steps and after every epoch.
    - `progress`: whether to show a progress bar.
    - `throw`: whether a NaN or Inf and Ctrl-C raise; otherwise the result says so in its status.

    **Returns:** a [`lyapunov_dsl.FitResult`][].

    **Raises:** `ValueError` for data that does not fit the declaration, targets out of range, counts that are not
    positive, a mesh of another kind, a batch that cannot be split evenly, another call in another process, a folder that
    cannot be written or that another run has, and a checkpoint there that is damaged or of another run;
    [`lyapunov_dsl.NonFiniteError`][] where the loss, a gradient, a parameter or the optimizer's state is NaN or Inf. It names
    the step and carries the last good program, and the last checkpoint stays; [`lyapunov_dsl.Interrupted`][] after Ctrl-C.

    **Warns:** where the fixed steps of the objective or the solver are too long for the vector field as it is, so that half as
    long ones lead elsewhere; where a later checkpoint or a line of metrics cannot be written. Training goes on.
    """
    with contextlib.ExitStack() as held:
        team = Team(mesh)
        with team.together():
            check_arguments(
                program,
                optimizer,
                epochs,
                batch_size,
                key,
                validation,
                select,
                folder,
                checkpoint_every,
                augment,
                steps_per_dispatch,
            )
            if folder is not None and mesh is None and jax.process_count() > 1:
                raise ValueError(
                    f"mesh: expected one, since {jax.process_count()} processes would write the same folder, got None (a process "
                    "that trains by itself gives a mesh of its own devices, and a folder of its own)"
                )
            x, y = check_pair("data", data)
            declaration = (
                program.declaration if augment is None else before_augmentation(augment, program.declaration, x)
            )
            size = check_data(declaration, program.certificate, x, y)
            if validation is not None:
                check_data(program.declaration, program.certificate, *check_pair("validation", validation))
                validation = jax.tree.map(jnp.asarray, tuple(validation))
            epochs, batch_size = int(epochs), min(int(batch_size), size)
            team.check_batch(batch_size, size)
            data = jax.tree.map(jnp.asarray, (x, y))

            mask = check_mask(program, trainable)
            params, static = split_trainable(program, mask)
            if not jax.tree.leaves(params):
                raise ValueError(
                    "program: expected a system with trainable arrays (floating-point JAX arrays, not Constant or NumPy), got none"
                )
            for path, leaf in jax.tree_util.tree_leaves_with_path(params):
                if not np.isfinite(np.asarray(leaf)).all():
                    raise ValueError(
                        f"program: expected finite arrays to begin with, got NaN or Inf at {jax.tree_util.keystr(path)}"
                    )
            if team.leads:
                warn_of_coarse_steps(program, data[0], augment)
            # Copied, because the step donates them: the caller's program has to outlive training.
            params = jax.tree.map(jnp.copy, params)
            # So are the moments: some optimizers keep the parameters, or an array of the caller's, in their state.
            moments = jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, optimizer.init(params))
            best = jax.tree.map(jnp.copy, params) if select == "best" else None
            order_key, step_key = jax.random.split(key)
            one_batch = lambda: jax.tree.map(lambda leaf: leaf[:batch_size], data)
            update = update_of(optimizer, static, augment, params, moments, one_batch, step_key)
            per_epoch = size // batch_size
            chunk = int(steps_per_dispatch or 0) or (1 if jax.default_backend() == "cpu" else 16)
            # A checkpoint holds whole systems and certificates, so that `load` can read it.
            system = lambda some: None if some is None else stored(join_trainable(some, static))
            state = lambda: {"program": system(params), "moments": moments, "best": system(best)}
            identity, more = {}, {}
            if folder is not None or not team.alone:
                identity = {
                    "program": program_header(program)["program"],
                    "objective or solver": structure((program.objective, program.solver)),
                    "optimizer": structure(moments),
                    "set of constants": fingerprint(static),
                    "data set": fingerprint(data),
                    "validation set": fingerprint(validation),
                    "batch size": str(batch_size),
                    "augmentation": structure(augment) + fingerprint(augment),
                    "key": fingerprint(key),
                    "selection": select,
                }
                more = {
                    "initial program": fingerprint(params),
                    "number of epochs": str(epochs),
                    "number of steps per dispatch": str(chunk),
                    "folder": str(folder is None),
                }
        team.check_same({**identity, **more})
        run, place = Run(), None
        if folder is not None:
            place = Folder(folder, identity, program_header(program), float(checkpoint_every), team)
            held.callback(place.release)
            begun = place.resume(state())
            if begun is None:
                place.write(dataclasses.asdict(run), state())
            else:
                run, found = Run(**begun[0]), begun[1]
                of = lambda pair: split_trainable(with_stored(program, pair), mask)[0]
                params, moments = of(found["program"]), found["moments"]
                best, run.chosen = (None, None) if best is None else (of(found["best"]), run.chosen)
                if run.step > epochs * per_epoch:
                    reached = -(-run.step // per_epoch)
                    raise ValueError(
                        f"epochs: expected at least {reached}, which {place.path} has reached, got {epochs}"
                    )

        params, moments, best, data = team.put((params, moments, best, data))
        fixed = (mesh, team.put(static), team.put(update), augment, data, team.put(step_key))
        bad, pending = team.put(jnp.full((), -1, jnp.int32)), []
        order, began = None, time.perf_counter()
        hidden = not (progress and team.leads)
        bar = tqdm(total=epochs * per_epoch, initial=run.step, disable=hidden, unit="step", mininterval=0.5)
        if run.step < epochs * per_epoch:
            bar.set_postfix_str("compiling")
        with bar, interrupts() as pressed:
            # Processes that train together stop together.
            stop = pressed if team.alone else []
            while run.step < epochs * per_epoch and not stop:
                epoch, batch = divmod(run.step, per_epoch)
                if order is None or batch == 0:
                    order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), size))
                    began = time.perf_counter() - run.seconds
                # Several steps at once only where they do not pass the next look; two sizes, so two compilations.
                ahead = min((epoch + 1) * per_epoch, (run.step // LOOK + 1) * LOOK) - run.step
                count = chunk if ahead >= chunk else 1
                indices = jnp.asarray(order[batch * batch_size : (batch + count) * batch_size]).reshape(
                    count, batch_size
                )
                which = team.put((indices, jnp.asarray(run.step, jnp.int32)))
                step = advance if count == 1 else advance_many
                params, moments, bad, loss = step((*fixed, *which), params, moments, bad)
                if bar.postfix == "compiling":
                    bar.set_postfix_str("", refresh=False)
                pending.append(loss)
                run.step += count
                bar.update(count)
                ended = run.step % per_epoch == 0
                if not (ended or run.step % LOOK == 0):
                    continue
                # Looking waits for the device, so it is done now and then only.
                if int(bad) >= 0:
                    break
                run.take(pending)
                run.seconds = time.perf_counter() - began
                lines = [run.window(epoch)]
                if ended:
                    record = run.epoch(epoch)
                    if validation is not None:
                        error = team.first(join_trainable(team.local(params), static).error(*validation))
                        record["validation"] = error
                        if best is not None and error <= run.least:
                            run.least, run.chosen, best = error, epoch, jax.tree.map(jnp.copy, params)
                    lines.append({"record": "epoch", **record})
                    shown = {k: f"{v:.4g}" for k, v in record.items() if k in ("loss", "validation")}
                    bar.set_postfix(shown, refresh=False)
                if place is not None:
                    place.log(lines)
                asked, due = team.agree(bool(pressed), place is not None and place.due())
                if asked and not stop:
                    stop.append(True)
                if place is not None and due:
                    writing = time.perf_counter()
                    place.write(dataclasses.asdict(run), state())
                    began += time.perf_counter() - writing

        done = run.step == epochs * per_epoch and int(bad) < 0
        if int(bad) < 0:
            run.take(pending)
            run.seconds = 0.0 if done or not run.losses else time.perf_counter() - began
            if place is not None and place.saved != run.step:
                place.write(dataclasses.asdict(run), state())
        status = (
            "done" if done else f"interrupted at step {run.step}" if int(bad) < 0 else f"NaN or Inf at step {int(bad)}"
        )
        chosen = team.local(params if run.chosen is None else best)
        result = FitResult(join_trainable(chosen, static), run.history, status, run.chosen)
        if done or not throw:
            return result
        which = "as it was before that step" if run.chosen is None else f"of the best epoch, {run.chosen},"
        if int(bad) >= 0:
            kept = "" if place is None else f"; the checkpoint of step {place.saved} stays in {place.path}"
            spent = ""
            if augment is None and team.alone and order is not None:
                batch = order[int(bad) % per_epoch * batch_size :][:batch_size]
                last = join_trainable(team.local(params), static)
                spent = end_to_end_out_of_steps(last, jax.tree.map(lambda leaf: leaf[batch], team.local(data[0])))
            raise NonFiniteError(
                f"{status} (epoch {int(bad) // per_epoch}): the loss, a gradient, a parameter or the optimizer's state is not "
                f"finite{spent}. The program {which} is in .result{kept}; a smaller learning rate, gradient clipping "
                "(optax.clip_by_global_norm), a smaller kappa or, in end-to-end training, more solver steps (max_steps) usually help",
                result,
            )
        where = "give folder=... to be able to go on"
        if place is not None:
            where = f"the same call goes on from step {place.saved} in {place.path}"
        raise Interrupted(f"{status} by Ctrl-C; {where}; the program so far is in .result", result)
