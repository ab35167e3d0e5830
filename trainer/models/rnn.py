"""rnn: a recurrent net over bytes of text, LSTM (Hochreiter and Schmidhuber, 1997) or GRU (Cho et al., 2014)."""

from torch import Tensor, nn

from trainer.models.pooling import mean_of_text
from trainer.tasks import LANGUAGE, Shape


class RNN(nn.Module):
    """It tells the next byte after each, reading forwards, or a text's class, reading both ways."""

    def __init__(self, shape: Shape, cell: str = "lstm", width: int = 128, layers: int = 1) -> None:
        super().__init__()
        if cell not in ("gru", "lstm"):
            raise ValueError(f"the cell is gru or lstm, not {cell}")
        self.tells_next = shape.task == LANGUAGE.name
        make = nn.GRU if cell == "gru" else nn.LSTM
        self.embedding = nn.Embedding(shape.vocabulary, width // 2)
        self.cells = make(width // 2, width, layers, batch_first=True, bidirectional=not self.tells_next)
        self.last = nn.Linear(width if self.tells_next else 2 * width, shape.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [N, length] to logits [N, length, vocabulary] or [N, classes]."""
        x, _ = self.cells(self.embedding(tokens))
        logits: Tensor = self.last(x if self.tells_next else mean_of_text(x, tokens))
        return logits
