//! Placeholder: filled by the change that brings the module.
