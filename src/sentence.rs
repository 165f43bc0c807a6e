//! An error as a person reads it: itself and its causes in one sentence (pure). For the edges, where it is told once.

/// The error and its causes, each once.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors of libraries repeat their cause in their own text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    #[test]
    fn each_cause_is_told_once() {
        let cause = Told("no space", None);
        let middle = Told("writing failed: no space", Some(Box::new(cause)));
        assert_eq!(sentence(&Told("the run ended", Some(Box::new(middle)))), "the run ended: writing failed: no space");
    }
}
