//! Durations as the API writes them: `90s`, `6h`, `7d`, `1h30m`. Pure.

use std::time::Duration;

/// The schema's rule for a duration. Not a pattern: what a pattern refuses, the server tells by the pattern alone.
/// Five digits, so that four times the largest is a duration for the server's own rules too (it counts nanoseconds).
pub const RULE: &str = "self.matches('^([1-9][0-9]{0,4}[smhd]){1,4}$')";
/// What the server says where the rule does not hold.
pub const RULE_SAYS: &str =
    "is not a duration: write whole numbers with s, m, h or d, such as 90s, 6h or 7d, each of five digits at most";

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {RULE_SAYS}")]
pub struct ParseDurationError {
    /// What was given.
    pub text: String,
}

/// Reads a duration.
///
/// # Errors
/// When the text is not what [`RULE`] says.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let refuse = || ParseDurationError { text: text.to_owned() };
    let (mut total, mut number) = (0u64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(refuse()),
        };
        if number.len() > 5 || number.starts_with('0') {
            return Err(refuse());
        }
        total += number.parse::<u64>().map_err(|_| refuse())? * unit;
        number.clear();
    }
    if total == 0 || !number.is_empty() {
        return Err(refuse());
    }
    Ok(Duration::from_secs(total))
}

/// Writes a duration for a column: the two largest units, `1m23s`, `2h05m`, `3d4h`.
pub fn show(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86400, s % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_they_are_written() {
        for (text, seconds) in
            [("90s", 90), ("6h", 21_600), ("7d", 604_800), ("1h30m", 5_400), ("99999d", 8_639_913_600)]
        {
            assert_eq!(parse(text).unwrap().as_secs(), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "h", "1.5h", "-1s", "0s", "05m", "1w", "1h ", "100000d", "5ms", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_column_shows_the_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (83, "1m23s"), (7_500, "2h05m"), (273_600, "3d4h")] {
            assert_eq!(show(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_longest_duration_of_the_schema_is_one_that_the_server_can_compare() {
        let mut object = crate::api::BackupRepository::new(
            "r",
            serde_json::from_value(serde_json::json!({"filesystem": {"path": "/srv/x"}})).unwrap(),
        );
        for (text, good) in
            [("99999h99999h99999h99999h", true), ("99999d99999d", true), ("999999h999999h999999h", false)]
        {
            object.spec.validation_frequency = text.to_owned();
            let said = object.validate_cel();
            assert_eq!(said.is_ok(), good, "{text}: {said:?}");
            assert_eq!(parse(text).is_ok(), good, "{text}");
        }
    }
}
