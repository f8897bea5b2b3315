"""llama.cpp's two handles, a model and a context, as Python objects that close themselves.

In: arrays. Out: a view of the logits, or states. Errors are exceptions with llama.cpp's log.

A batch is built from numpy arrays without a loop over tokens. llama.cpp gets bare addresses, so
every array stays referenced by a local name until the call has returned: as an argument,
`np.ascontiguousarray(x, np.float32)` would be a temporary with a dangling address.
"""

import ctypes
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from valle_convert.closing import Closing
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.llama.library import INSTALL_TESTED, Library

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
CacheType = Literal["f16", "f32"]
Tune = Literal["auto", "off", "again"]
#: The result of a decode: logits, or without them the output of the last layer or of the last norm;
#: "embeddings" is llama.cpp's own output of the last norm, beside logits.
Output = Literal["logits", "states", "normed", "embeddings"]

#: llama.cpp's name for the output of a layer.
STATES = "l_out-{}"
#: llama.cpp's name for the input of the output head.
NORMED = "result_norm"
#: Operations whose results may have the name of their input.
_SAME_NAME = frozenset({b"RESHAPE", b"ROPE", b"VIEW", b"PERMUTE"})

CELLS_PER_BLOCK = 256  # llama.cpp rounds a context up to blocks of this many cells


@dataclass(frozen=True)
class Settings:
    """How llama.cpp computes: affects only speed, memory and rounding."""

    cache_type: CacheType = "f32"  # number format of cached keys and values
    flash_attention: bool = False  # the fused kernel, which computes in f16 for any cache type
    repack: bool = True  # copy weights into the order that suits the CPU's kernels best
    n_gpu_layers: int = 0  # layers to offload; -1 for all
    own_head: bool = False  # multiply only the wanted rows of the output head, outside of llama.cpp
    n_threads: int | None = None  # None for one per usable core, or one alone for a small model
    #: Sequences to have room for; 0 for the number that the search finds, or 1 without a search.
    #: From 2 on, a step rounds the same for any number.
    n_parallel: int = 1
    #: Whether a search finds the fastest values of the other fields for a file on this machine.
    tune: Tune = "off"


#: llama.cpp's own head and f32 caches, for verdicts.
EXACT = Settings()


class LlamaModel(Closing):
    """The weights of one GGUF file, or of the parts of a split one."""

    def __init__(
        self,
        library: Library,
        path: Path,
        *,
        further_parts: Sequence[Path] = (),
        settings: Settings = EXACT,
        opened_as: Path | None = None,
        vocab_only: bool = False,
    ) -> None:
        self.library = library
        self.path = path
        self._handle: Any = None
        for part in (path, *further_parts):
            if not part.is_file():
                raise InputError(f"The model {part} is not a file; give the path of a GGUF file.")
        api = library.api
        library.check_gpu(settings.n_gpu_layers)
        parameters = api.llama_model_default_params()
        parameters.vocab_only = vocab_only
        parameters.load_mode = api.LLAMA_LOAD_MODE_MMAP
        parameters.n_gpu_layers = settings.n_gpu_layers
        # Repacked weights are copies, which do not follow a mapped file.
        parameters.use_extra_bufts = settings.repack and not further_parts
        mark = library.log.mark()
        paths = [os.fsencode(part) for part in (opened_as or path, *further_parts)]
        array = (ctypes.c_char_p * len(paths))(*paths)
        # Also for a single file: given only its path, llama.cpp would guess the names of parts.
        self._handle = api.llama_model_load_from_splits(array, len(paths), parameters)
        if not self._handle:
            raise InputError(
                f"llama.cpp {library.binding_version} does not load {path}."
                f"{library.log.explain(mark)} Check that the file is complete, or convert it "
                "again."
            )
        vocabulary = api.llama_model_get_vocab(self._handle)
        self.n_embd = int(api.llama_model_n_embd(self._handle))
        self.n_vocab = int(api.llama_vocab_n_tokens(vocabulary))
        self.n_layer = int(api.llama_model_n_layer(self._handle))
        self.n_params = int(api.llama_model_n_params(self._handle))

    @property
    def handle(self) -> Any:  # noqa: ANN401 - an opaque pointer
        if not self._handle:
            raise ValueError(f"the model {self.path} is closed")
        return self._handle

    def architecture(self) -> str:
        """`general.architecture`, or its beginning; empty if the file has none."""
        buffer = ctypes.create_string_buffer(256)
        key = b"general.architecture"
        self.library.api.llama_model_meta_val_str(self.handle, key, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    def load_adapter(self, path: Path) -> Any:  # noqa: ANN401 - an opaque pointer
        """A LoRA for contexts of this model; freed with the model."""
        api = self.library.api
        mark = self.library.log.mark()
        adapter = api.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not adapter:
            raise InputError(
                f"llama.cpp {self.library.binding_version} does not take {path} as an adapter of "
                f"{self.path}.{self.library.log.explain(mark)} Make it again with "
                "`valle-convert lora`."
            )
        return adapter

    def close(self) -> None:
        """Free the weights; contexts of this model must be closed before."""
        if self._handle:
            self.library.api.llama_model_free(self._handle)
            self._handle = None


class Context(Closing):
    """A key/value cache for `n_seq` sequences of `n_ctx` positions, and the buffers to decode.

    Each sequence has its own cells (llama.cpp's cache that is not unified): a step then costs and
    rounds the same whatever other sequences hold. In such a cache, llama.cpp computes one batch in
    one piece only if it is all of one sequence, or has one row for each of several that follow one
    another; so those are the only batches.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_ubatch: int,
        n_seq: int,
        n_threads: int,
        settings: Settings = EXACT,
        rope_scale: float | None = None,
        output: Output = "logits",
        watched: Collection[str] = (),
    ) -> None:
        """Open a context; `watched` names tensors of the graph, see `caught`."""
        self.model = model
        self._output = output
        self._last = {"states": STATES.format(model.n_layer - 1), "normed": NORMED}.get(output)
        names = {*watched, *([self._last] if self._last else [])}
        self._catcher = _Catcher(model.library, names, self._last) if names else None
        #: The watched tensors of the last decode, [n, width] in the order of the batch.
        self.caught: dict[str, FloatArray] = {}
        self._api = model.library.api
        self._log = model.library.log
        self._handle: Any = None
        api = self._api
        parameters = api.llama_context_default_params()
        cells = -(-n_ctx // CELLS_PER_BLOCK) * CELLS_PER_BLOCK
        _check_size(model, settings, n_seq, cells)
        parameters.n_ctx = cells * n_seq
        parameters.n_batch = max(cells, n_seq)
        parameters.n_ubatch = min(n_ubatch, parameters.n_batch)
        parameters.n_seq_max = n_seq
        parameters.n_threads = n_threads
        parameters.n_threads_batch = n_threads
        parameters.type_k = parameters.type_v = {
            "f32": api.GGML_TYPE_F32,
            "f16": api.GGML_TYPE_F16,
        }[settings.cache_type]
        parameters.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if settings.flash_attention
            else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        if rope_scale is not None:
            parameters.rope_scaling_type = api.LLAMA_ROPE_SCALING_TYPE_LINEAR
            parameters.rope_freq_scale = rope_scale
        parameters.kv_unified = False
        parameters.no_perf = True
        parameters.embeddings = output == "embeddings"
        if self._catcher is not None:
            parameters.cb_eval = self._catcher.callback
        mark = self._log.mark()
        self._handle = api.llama_init_from_model(model.handle, parameters)
        if not self._handle:
            raise EnvironmentFault(
                f"llama.cpp cannot make a context of {n_seq} x {n_ctx} positions for {model.path}."
                f"{self._log.explain(mark)} Free some memory, or give a shorter input."
            )
        self._memory = api.llama_get_memory(self._handle)
        self.n_seq, self.n_ctx = n_seq, cells
        self.n_batch = int(api.llama_n_batch(self._handle))
        self.n_ubatch = int(api.llama_n_ubatch(self._handle))

    @property
    def handle(self) -> Any:  # noqa: ANN401 - an opaque pointer
        if not self._handle:
            raise ValueError("the context is closed")
        return self._handle

    def close(self) -> None:
        if self._handle:
            self._api.llama_free(self._handle)
            self._handle = None

    def decode(
        self,
        inputs: FloatArray | IntArray,  # raw embeddings [n, n_embd], or token ids [n]
        positions: NDArray[np.integer],  # [n], llama.cpp's
        sequences: IntArray | int = 0,  # of each token [n], or of all
        outputs: BoolArray | bool = True,  # [n], where logits (or states) are wanted
        *,
        causal: bool,
    ) -> FloatArray:
        """Compute a batch and append it to the cache.

        Gives logits [n_out, n_vocab], or states [n_out, n_embd], in batch order: a view of
        llama.cpp's memory, valid until the next call.
        """
        n = len(positions)
        if not causal and n > self.n_ubatch:
            # llama.cpp would abort the whole process.
            raise ValueError(f"{n} tokens in both directions, but n_ubatch is {self.n_ubatch}")
        if n > self.n_batch:
            raise ValueError(f"a batch of {n} tokens, but n_batch is {self.n_batch}")
        # Each has a name, since llama.cpp sees addresses only (see the module's docstring).
        data = np.ascontiguousarray(inputs)
        places = np.ascontiguousarray(positions, dtype=np.int32)
        ids = np.full(n, sequences, dtype=np.int32)
        counts = np.ones(n, dtype=np.int32)
        addresses = (ids.ctypes.data + ids.itemsize * np.arange(n)).astype(np.uintp)
        wanted = np.full(n, outputs, dtype=np.int8)

        api = self._api
        batch = api.llama_batch()
        batch.n_tokens = n
        if data.dtype == np.float32:
            batch.embd = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        else:
            batch.token = data.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.pos = places.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = addresses.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

        if self._catcher is not None:
            self._catcher.take()  # discard the remains of a failed decode
        mark = self._log.mark()
        api.llama_set_causal_attn(self.handle, causal)
        code = int(api.llama_decode(self.handle, batch))
        if code != 0:
            raise EnvironmentFault(
                f"llama.cpp failed to decode a batch of {n} positions of {self.model.path} "
                f"(llama_decode returned {code}).{self._log.explain(mark)}"
            )
        n_out = int(np.count_nonzero(wanted))
        if self._catcher is not None:
            self.caught = self._catcher.take()
        if self._last is not None:
            return self._states_of(n_out)
        is_embedding = self._output == "embeddings"
        width = self.model.n_embd if is_embedding else self.model.n_vocab
        if n_out == 0:
            return np.empty((0, width), dtype=np.float32)
        pointer = (api.llama_get_embeddings if is_embedding else api.llama_get_logits)(self.handle)
        return np.ctypeslib.as_array(
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (n_out, width)
        )

    def _states_of(self, n: int) -> FloatArray:
        assert self._last is not None  # noqa: S101 - for the type checker
        found = self.caught.get(self._last, np.empty((0, self.model.n_embd), np.float32))
        if found.shape != (n, self.model.n_embd):
            raise EnvironmentFault(
                f"llama.cpp {self.model.library.binding_version} gives {len(found)} states of "
                f"{self.model.path}, expected {n}; {INSTALL_TESTED}."
            )
        return found

    def use_adapters(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Use exactly these adapters from now on, with a scale each."""
        n = len(adapters)
        handles = (self._api.llama_adapter_lora_p_ctypes * n)(*(one for one, _ in adapters))
        scales = (ctypes.c_float * n)(*(scale for _, scale in adapters))
        if self._api.llama_set_adapters_lora(self.handle, handles, n, scales) != 0:
            raise EnvironmentFault("llama.cpp cannot switch adapters.")

    def clear(self) -> None:
        self._api.llama_memory_clear(self._memory, False)

    def remove(self, sequence: int, start: int = 0) -> None:
        """Empty the cache of one sequence, from position `start` on."""
        self._api.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def move(self, sequence: int, by: int) -> None:
        """Add `by` to all positions of a sequence; its keys are rotated at the next decode."""
        self._api.llama_memory_seq_add(self._memory, sequence, 0, -1, by)

    def drop_pending_rotation(self, sequence: int) -> None:
        """Forget the rotation that `move` left pending, but keep the moved positions.

        A saved state holds positions and keys, but no pending rotation; so the sequence is saved,
        removed and restored. The cells' pending shifts disappear with the cells. llama.cpp then
        rotates by zero at the next decode, which changes no bit.
        """
        state = self.save(sequence)
        self.remove(sequence)
        self.restore(sequence, state)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of one sequence's cells: positions, keys and values."""
        size = int(self._api.llama_state_seq_get_size(self.handle, sequence))
        state = np.empty(size, dtype=np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        mark = self._log.mark()
        written = int(self._api.llama_state_seq_get_data(self.handle, pointer, size, sequence))
        if written != size:
            raise EnvironmentFault(
                f"llama.cpp saved {written} of {size} bytes of its state.{self._log.explain(mark)}"
            )
        return state

    def restore(self, sequence: int, state: NDArray[np.uint8]) -> None:
        """Put a saved state in the place of one sequence."""
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        mark = self._log.mark()
        read = int(self._api.llama_state_seq_set_data(self.handle, pointer, state.size, sequence))
        if read != state.size:
            raise EnvironmentFault(
                f"llama.cpp restored {read} of {state.size} bytes of its state."
                f"{self._log.explain(mark)}"
            )


def _check_size(model: LlamaModel, settings: Settings, n_seq: int, cells: int) -> None:
    """Reject a cache that does not fit: the system would end the process while it is filled."""
    api = model.library.api
    heads = api.llama_model_n_head_kv(model.handle) / api.llama_model_n_head(model.handle)
    width = 2 * model.n_layer * model.n_embd * heads  # keys and values
    needed = n_seq * cells * width * (4 if settings.cache_type == "f32" else 2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory or n_seq > api.llama_max_parallel_sequences():
        raise InputError(
            f"{n_seq} sequences of {cells:,} positions need {needed / 1e9:.1f} GB (this machine "
            f"has {memory / 1e9:.1f}) and at most {api.llama_max_parallel_sequences()} fit into a "
            "batch. Give a smaller --parallel, or a shorter text."
        )


class _Catcher:
    """Catches tensors of the graph by name while llama.cpp computes it.

    llama.cpp does not promise the names, so every user of one proves what it is.
    """

    def __init__(self, library: Library, names: Collection[str], last: str | None) -> None:
        """The graph ends at the tensor `last`."""
        tensor, size = ctypes.c_void_p, ctypes.c_size_t
        self._base = library.ggml(
            "ggml-base",
            [
                ("ggml_get_name", ctypes.c_char_p, [tensor]),
                ("ggml_op_desc", ctypes.c_char_p, [tensor]),
                ("ggml_nrows", ctypes.c_int64, [tensor]),
                ("ggml_nbytes", size, [tensor]),
                ("ggml_backend_tensor_get", None, [tensor, tensor, size, size]),
            ],
        )
        self._names = {name.encode() for name in names}
        self._last = None if last is None else last.encode()
        self._caught: dict[str, list[FloatArray]] = {}
        # llama.cpp holds its bare address.
        self.callback = library.api.ggml_backend_sched_eval_callback(self._look_at)

    def _look_at(self, tensor: int, ask: bool, user_data: object) -> bool:
        """Called before a tensor is computed (is it wanted?), and after (may the graph go on?)."""
        del user_data
        name: bytes = self._base.ggml_get_name(tensor)
        if ask:
            # A result of a tensor may have its name.
            return name in self._names and self._base.ggml_op_desc(tensor) not in _SAME_NAME
        n = self._base.ggml_nrows(tensor)
        if not n:
            return name != self._last
        rows = np.empty((n, self._base.ggml_nbytes(tensor) // (4 * n)), np.float32)
        self._base.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
        self._caught.setdefault(name.decode(), []).append(rows)
        return name != self._last

    def take(self) -> dict[str, FloatArray]:
        """The tensors caught since the last call by name, [rows, width]."""
        caught, self._caught = self._caught, {}
        return {name: np.concatenate(parts) for name, parts in caught.items()}
