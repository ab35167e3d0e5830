"""What the files in a run's folder are called, whichever framework trained it."""

FACTS = "data.json"  # for what data the model was made
WEIGHTS = "weights.npz"  # of a run on Keras: its weights under PyTorch's names, and after how many epochs they are so
REPORT = "report.html"
ATTACKS = "robustness.json"
MEMBERSHIP = "membership.json"
