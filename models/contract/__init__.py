"""What a model family is: one folder, described by one ``Family``, from which everything else is read.

The description is data and costs nothing to import: no torch, and what does cost is named (``LazyRef``) rather than
imported. Serving, the command line, OpenAPI, cache keys and the generic tests know families by this alone.

One idea a file; everybody else imports the names from here.
"""

from __future__ import annotations

from models.contract.chat import ChatNetwork, Grid, Prompts, TextBox, Turn
from models.contract.experts import Choose, ExpertFacts, Experts, Move, PlacedExperts, Slots
from models.contract.family import Family, OnProgress, Parity, Shape
from models.contract.lazy import LazyRef
from models.contract.runners import (
    ExpertPhases,
    Figures,
    Job,
    JobState,
    Judge,
    LaidOut,
    Parallel,
    Phase,
    Prepare,
    Previews,
    Runner,
    Staged,
    Unary,
)
from models.contract.settings import Knob, Point, Scope, SettingError, Value, check_settings, find_knob, point_key
from models.contract.variant import Source, Variant, check_licence
from models.contract.work import STEP_UNITS, UNITS, Work

__all__ = [
    "STEP_UNITS",
    "UNITS",
    "ChatNetwork",
    "Choose",
    "ExpertFacts",
    "ExpertPhases",
    "Experts",
    "Family",
    "Figures",
    "Grid",
    "Job",
    "JobState",
    "Judge",
    "Knob",
    "LaidOut",
    "LazyRef",
    "Move",
    "OnProgress",
    "Parallel",
    "Parity",
    "Phase",
    "PlacedExperts",
    "Point",
    "Prepare",
    "Previews",
    "Prompts",
    "Runner",
    "Scope",
    "SettingError",
    "Shape",
    "Slots",
    "Source",
    "Staged",
    "TextBox",
    "Turn",
    "Unary",
    "Value",
    "Variant",
    "Work",
    "check_licence",
    "check_settings",
    "find_knob",
    "point_key",
]
