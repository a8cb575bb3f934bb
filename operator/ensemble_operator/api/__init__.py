"""What users write: the `InferenceEnsemble` and `ModelProfile` documents, and the CRDs generated from them."""
