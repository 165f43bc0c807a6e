//! Kubernetes quantities (`100Mi`, `1.5G`, `2e6`), read as whole numbers. Pure.
//!
//! Own code after apimachinery's rules (`resource.ParseQuantity`): decimal and binary suffixes, decimal exponents,
//! fractions rounded up to the next whole unit. Arithmetic is in i128, so that no accepted text overflows.

/// The schema's rule for an amount of bytes; negative and sub-unit suffixes are no amounts of bytes. Not a pattern: what a
/// pattern refuses, the server tells by the pattern alone. Each suffix has as many digits as fit into 63 bits with it.
pub const RULE: &str = "self.matches('^([0-9]{1,15}([.][0-9]{1,9})?(k|Ki)?|[0-9]{1,12}([.][0-9]{1,9})?Mi?|[0-9]{1,9}([.][0-9]{1,9})?Gi?|[0-9]{1,6}([.][0-9]{1,9})?Ti?|[0-9]{1,3}([.][0-9]{1,9})?Pi?)$')";
/// What the server says where the rule does not hold.
pub const RULE_SAYS: &str = "is not an amount: write a number with k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or nothing, such as 100Mi, and no more than 999Pi";

/// The schema's rule for a rate: some amount at all.
pub const RATE_RULE: &str = "!self.matches('^0+([.]0+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$')";
/// What the server says where the rule does not hold.
pub const RATE_RULE_SAYS: &str = "is no rate: leave it out for as fast as possible";

/// A text that is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity: write a number with k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or nothing, such as 100Mi")]
pub struct ParseQuantityError {
    /// What was given.
    pub text: String,
}

/// Reads an amount of bytes (or bytes per second), rounded up to a whole one.
///
/// # Errors
/// When the text is no quantity, is negative, or does not fit into 63 bits.
pub fn parse(text: &str) -> Result<u64, ParseQuantityError> {
    read(text)
        .filter(|&n| n <= i128::from(i64::MAX))
        .and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| ParseQuantityError { text: text.to_owned() })
}

fn read(text: &str) -> Option<i128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let factor = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000i128.pow(2),
        "G" => 1000i128.pow(3),
        "T" => 1000i128.pow(4),
        "P" => 1000i128.pow(5),
        "E" => 1000i128.pow(6),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if exponent > 18 {
                return None;
            }
            10i128.pow(exponent)
        }
    };
    let product = digits.checked_mul(factor)?;
    Some((product + divisor - 1) / divisor)
}

/// Writes bytes for a column: `512`, `1.5Gi`, three digits at most before the unit.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut unit = 0;
    // Tenths of the unit, rounded to nearest; u128 holds the tenfold of any u64.
    let mut tenths = (u128::from(bytes) * 10 + 512) / 1024;
    while tenths >= 10_235 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    if tenths >= 100 || tenths % 10 == 0 {
        format!("{}{}", (tenths + 5) / 10, UNITS[unit])
    } else {
        format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_apimachinery_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("100", 100),
            ("+5", 5),
            ("1k", 1_000),
            ("1Ki", 1_024),
            ("1.5Gi", 1_610_612_736),
            (".5Mi", 524_288),
            ("5.Ki", 5_120),
            ("0.1", 1),
            ("1E", 1_000_000_000_000_000_000),
            ("2e6", 2_000_000),
            ("2E3", 2_000),
            ("7Ei", 8_070_450_532_247_928_832),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_of_bytes_is_refused() {
        for text in [
            "",
            ".",
            "-1",
            "1KB",
            "1 Mi",
            "Mi",
            "1.2.3",
            "1e",
            "1e99",
            "8Ei",
            "100E",
            "99999999999999999999",
            "10m",
            "1kk",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn columns_show_sizes_that_a_person_can_read() {
        for (bytes, text) in [
            (0, "0"),
            (1_023, "1023"),
            (1_024, "1Ki"),
            (1_610_612_736, "1.5Gi"),
            (4 << 30, "4Gi"),
            (1_048_575, "1Mi"),
            (123_456_789, "118Mi"),
            (u64::MAX, "16Ei"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }

    #[test]
    fn what_the_schema_takes_for_a_rate_can_be_read() {
        let spec = |rate: &str| {
            serde_json::json!({
                "guestRef": {"name": "g"}, "repositoryRef": {"name": "r"}, "transfer": {"bandwidth": rate}
            })
        };
        for rate in ["100Mi", "999Pi", "999999Ti", "999999999Gi", "999999999999Mi", "999999999999999Ki", "1.5G"] {
            let run = crate::api::BackupRun::new("b", serde_json::from_value(spec(rate)).unwrap());
            assert!(run.validate_cel().is_ok() && parse(rate).is_ok(), "{rate}");
        }
        for rate in ["9999999999Pi", "1000Pi", "1000000Ti", "0", "-1"] {
            let run = crate::api::BackupRun::new("b", serde_json::from_value(spec(rate)).unwrap());
            assert!(run.validate_cel().is_err(), "{rate}");
        }
    }
}
