"""Speech synthesis with eSpeak NG in this process, with the start of each phone.

The library comes from the PyPI package ``espeakng-loader``. It keeps state that changes later sentences and cannot be
reset; it is therefore loaded again for each sentence, which takes a third of a millisecond.
"""

from __future__ import annotations

import _ctypes
import ctypes
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ngsgd.errors import DataError, UtteranceError

RATE = 22050  # samples per second, for all voices

# Constants of <espeak-ng/speak_lib.h>.
SYNCHRONOUS, PHONEME_EVENTS, DONT_EXIT = 2, 0x0001, 0x8000
POS_CHARACTER, CHARS_UTF8 = 1, 1
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
END_OF_LIST, PHONEME = 0, 7
RANDOM_SEED = 1  # seed for breath noise; 0 would seed from the clock

SILENCE = "_"
PHONES = (
    SILENCE, ";", "0", "3", "3:", "?", "@", "@L", "A:", "A@", "D", "E", "I", "IR", "N", "O", "O:", "O@", "OI", "S", "T",
    "U", "U@", "V", "VR", "Z", "a", "aI", "aI@", "aU", "aa", "b", "d", "dZ", "e@", "eI", "f", "g", "h", "i", "i:", "i@",
    "j", "k", "l", "m", "n", "o@", "oU", "p", "r", "s", "t", "tS", "u:", "v", "w", "z",
)  # fmt: skip
"""Phones of the English accents in use, without stress and variants; all pauses are one phone."""

_STRESS = re.compile(r"^[',%=|]+")
_VARIANT = re.compile(r"(?<=.)[0-9#\[-]+$")


@dataclass(frozen=True)
class Voice:
    """Voice settings.

    Attributes:
        name: accent and variant, such as ``en-us+f3``.
        speed: words per minute.
        pitch, pitch_range: from 0 to 99.
    """

    name: str
    speed: int
    pitch: int
    pitch_range: int


class Speech(NamedTuple):
    """Synthesised speech.

    Attributes:
        samples: (n,) float32, between -1 and 1, at `RATE` samples per second.
        phones: indices into `PHONES`.
        begins: start of each phone, in samples.
    """

    samples: npt.NDArray[np.float32]
    phones: list[int]
    begins: list[int]


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def package() -> Path:
    """Returns the folder of the installed package, with the library and its data.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the package espeakng-loader, which carries eSpeak NG, is not installed; see `make env`")
    return Path(spec.submodule_search_locations[0])


def say(text: str, voice: Voice) -> Speech:
    """Synthesises a sentence; the result does not depend on earlier calls.

    Raises:
        DataError: eSpeak NG is not installed, or does not have the voice.
        UtteranceError: the speech is empty, or has a phone that is not in `PHONES`.
    """
    pieces: list[bytes] = []
    events: list[tuple[int, str]] = []

    def collect(samples: ctypes._Pointer[ctypes.c_short], number: int, batch: ctypes._Pointer[_Event]) -> int:
        if number > 0:
            pieces.append(ctypes.string_at(samples, 2 * number))
        i = 0
        while batch[i].type != END_OF_LIST:
            if batch[i].type == PHONEME:
                events.append((batch[i].sample, batch[i].id.string.decode("utf-8", "replace")))
            i += 1
        return 0

    callback = _Callback(collect)
    library = ctypes.CDLL(str(next(package().glob("libespeak-ng.so*"))))
    try:
        data = str(package() / "espeak-ng-data").encode()
        if library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS | DONT_EXIT) != RATE:
            raise DataError(f"{package()}: eSpeak NG cannot be started; reinstall the package espeakng-loader")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.name.encode()):
            raise DataError(f"eSpeak NG has no voice {voice.name!r}")
        library.espeak_SetParameter(PARAMETER_RATE, voice.speed, 0)
        library.espeak_SetParameter(PARAMETER_PITCH, voice.pitch, 0)
        library.espeak_SetParameter(PARAMETER_RANGE, voice.pitch_range, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))
        encoded = text.encode()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return _speech(b"".join(pieces), events)


def _speech(pcm: bytes, events: list[tuple[int, str]]) -> Speech:
    samples = np.frombuffer(pcm, np.int16).astype(np.float32) / 2.0**15
    phones: list[int] = []
    begins: list[int] = []
    for begin, symbol in events:
        phone = canonical(symbol)
        if phone not in PHONES:
            raise UtteranceError(f"phone {symbol!r} is not one of the {len(PHONES)} phones of the corpus")
        if begins and begin <= begins[-1]:  # the previous phone has length 0
            phones.pop()
            begins.pop()
        phones.append(PHONES.index(phone))
        begins.append(begin)
    if not phones or not len(samples):
        raise UtteranceError("eSpeak NG gave no speech")
    return Speech(samples, phones, begins)


def canonical(symbol: str) -> str:
    """Strips stress, variant and kind of pause from a phoneme name of eSpeak."""
    bare = _VARIANT.sub("", _STRESS.sub("", symbol))
    return SILENCE if bare.startswith(SILENCE) or not bare else bare
