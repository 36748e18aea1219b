"""An encoder of codes in the verbs: opened, trained with a head, asked, scored."""
