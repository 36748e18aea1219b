"""Finding PHI: by form, by list, by what is known of the patient, and by training."""
