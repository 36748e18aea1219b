import warnings

# Lightning imports bars of notebooks that it is told not to draw; without widgets they complain.
warnings.filterwarnings("ignore", "IProgress not found")
