"""What ``benchmark``, ``evaluate`` and ``finetune`` make a study and its report of."""
