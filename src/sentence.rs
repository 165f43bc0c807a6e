//! What a person reads: an error with its causes in one sentence, for the edges, where it is told once; sizes and counts in
//! words. Pure.

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

/// Bytes for people, such as `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// How many of something, such as `1 cluster` and `2 clusters`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_something_is_singular() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "cluster")), ["0 clusters", "1 cluster", "2 clusters"]);
    }

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
