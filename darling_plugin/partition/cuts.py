"""What a partition model did not read to its end: counted, and warned of once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass
class Cuts:
    """How many texts, or pairs of them, a model has read since it was loaded, and how many not to their end.

    Attributes:
        made_up: what is read now is nobody's response: not counted, not warned of.
        all_cut: whether all that was made up and read last was cut: of longer texts no more would be read.
    """

    read: int = 0
    cut: int = 0
    made_up: bool = False
    all_cut: bool = False

    def count(self, read: int, cut: int, reads: str) -> None:
        """Counts, and warns of the first that are cut: what begins alike for as long as a model reads is one to it.

        Args:
            reads: who reads how much, and of what: "BERT reads 256 tokens of a text".
        """
        if self.made_up:
            self.all_cut = 0 < read == cut
            return
        if cut and not self.cut:
            logger.warning(
                "%d of %d (%.0f %%) are cut: %s, and the rest is not compared. Said once; the metric cut_share "
                "goes on counting",
                *(cut, read, 100 * cut / read, reads),
            )
        self.read += read
        self.cut += cut
