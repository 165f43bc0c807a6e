//! Who signs the certificates of this installation, and whom its parts trust (pure). The authority and its successor are
//! in a Secret, every authority that is trusted is in a ConfigMap, which the agents' pods mount.
//!
//! An authority is trusted some time before it signs and until it ends, so that a change of it breaks no connection.

pub mod keep;

use std::time::Duration;

use crate::certs::authority::{Authority, AuthorityError, Pair, Validity, facts};

/// How long a changed ConfigMap may take to reach the agents' pods: a kubelet looks every minute or so.
pub const SPREAD: Duration = Duration::from_secs(120);
/// Authorities that are trusted at once, at most.
const TRUSTED: usize = 8;

/// How long certificates are made for, and by whom.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The authority's lifetime.
    pub authority: Duration,
    /// The lifetime of what it signs.
    pub certificate: Duration,
    /// The Secret is somebody else's, such as cert-manager's: it is read and never written.
    pub given: bool,
}

/// What the Secret and the ConfigMap hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// The authority that signs.
    pub current: Option<Pair>,
    /// The one that will.
    pub next: Option<Pair>,
    /// Whom the agents trust.
    pub trusted: String,
}

/// What is to be done with the Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the current authority signs.
    Keep,
    /// Make the first authority, or one after the end of the last.
    Make,
    /// Make a successor, to be trusted from now on.
    Stage,
    /// Have the successor sign.
    Promote,
    /// A person or cert-manager has to put an authority there.
    Wait,
}

/// What is to be done at `now`, in seconds since 1970.
pub fn plan(stored: &Stored, terms: &Terms, now: u64) -> Step {
    let ends = |pair: &Option<Pair>| pair.as_ref().and_then(|p| facts(&p.certificate)).map(|f| f.validity);
    let current = match (&stored.current, ends(&stored.current)) {
        (None, _) if terms.given => return Step::Wait,
        (None, _) => return Step::Make,
        // What cannot be read is told of when it is used, and never replaced: it may be somebody's.
        (Some(_), None) => return Step::Keep,
        (Some(_), Some(_)) if terms.given => return Step::Keep,
        (Some(_), Some(current)) => current,
    };
    if now >= current.until {
        // The agents trust a successor that is there already.
        let good = ends(&stored.next).is_some_and(|next| next.from <= now && now < next.until);
        return if good { Step::Promote } else { Step::Make };
    }
    // Made by a clock that was ahead: nothing that it signs is valid yet, for months perhaps.
    if now < current.from {
        return Step::Make;
    }
    // The last quarter of its life is for handing over.
    let handing_over = now >= current.until.saturating_sub(current.lifetime() / 4);
    match ends(&stored.next) {
        Some(next) if now >= next.made() + spread(next) => Step::Promote,
        Some(_) => Step::Keep,
        None if handing_over => Step::Stage,
        None => Step::Keep,
    }
}

/// How long a successor is trusted before it signs.
fn spread(next: Validity) -> u64 {
    (next.lifetime() / 8).min(86_400)
}

/// Whom to trust: the authority, its successor, and those before that have not ended.
pub fn trusted(stored: &Stored, now: u64) -> String {
    let own = [&stored.current, &stored.next].into_iter().flatten().map(|pair| pair.certificate.as_str());
    let mut all: Vec<String> = Vec::new();
    for certificate in own.flat_map(|chain| certificates(chain).take(1)).chain(certificates(&stored.trusted)) {
        let good = facts(&certificate).is_some_and(|f| f.signs && now < f.validity.until);
        if good && !all.contains(&certificate) && all.len() < TRUSTED {
            all.push(certificate);
        }
    }
    all.concat()
}

/// Whether an authority, the first of its chain, is among those that are trusted.
pub fn trusts(trusted: &str, chain: &str) -> bool {
    certificates(chain).next().is_some_and(|authority| certificates(trusted).any(|one| one == authority))
}

/// The certificates of a PEM text, one by one, each as a text that compares.
fn certificates(pem: &str) -> impl Iterator<Item = String> + '_ {
    pem.split("-----BEGIN CERTIFICATE-----").skip(1).filter_map(|rest| {
        let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
        let lines: Vec<&str> = body.split_whitespace().collect();
        Some(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
    })
}

/// The authority that signs.
///
/// # Errors
/// When what is stored is none.
pub fn signer(stored: &Stored) -> Result<Option<Authority>, AuthorityError> {
    stored.current.as_ref().map(|pair| Authority::from_pem(&pair.certificate, &pair.key)).transpose()
}

/// Whether a certificate is to be made anew: two thirds of its life are over, or a clock that was ahead made it and it is
/// not valid yet.
pub fn is_due(validity: Validity, now: u64) -> bool {
    now < validity.from || now >= renewal(validity)
}

/// When that is.
pub fn renewal(validity: Validity) -> u64 {
    validity.made() + validity.lifetime() * 2 / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const TERMS: Terms =
        Terms { authority: Duration::from_secs(8_000), certificate: Duration::from_secs(600), given: false };

    fn authority(made: u64) -> Option<Pair> {
        Some(Authority::generate(Validity::starting(made, TERMS.authority)).unwrap())
    }

    #[test]
    fn an_authority_hands_over_in_time_and_nobody_is_distrusted_before_it_ends() {
        let mut stored = Stored::default();
        let mut steps = Vec::new();
        for second in (NOW..NOW + 20_000).step_by(100) {
            let step = plan(&stored, &TERMS, second);
            match step {
                Step::Make => stored.current = authority(second),
                Step::Stage => stored.next = authority(second),
                Step::Promote => stored.current = stored.next.take(),
                Step::Keep | Step::Wait => {}
            }
            let before = stored.trusted.clone();
            stored.trusted = trusted(&stored, second);
            for certificate in certificates(&before) {
                let ended = facts(&certificate).unwrap().validity.until <= second;
                assert!(
                    ended || stored.trusted.contains(&certificate),
                    "distrusted {} s after the start",
                    second - NOW
                );
            }
            if step != Step::Keep {
                steps.push((step, second - NOW));
            }
            let signs = facts(&stored.current.as_ref().unwrap().certificate).unwrap().validity;
            assert!(second < signs.until);
        }
        let expected = [
            (Step::Make, 0),
            (Step::Stage, 6_000),
            (Step::Promote, 7_000),
            (Step::Stage, 12_000),
            (Step::Promote, 13_000),
            (Step::Stage, 18_000),
            (Step::Promote, 19_000),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn after_a_long_sleep_a_new_authority_is_made_and_an_ended_one_is_not_trusted() {
        let stored = Stored { current: authority(NOW), next: None, trusted: String::new() };
        assert_eq!(plan(&stored, &TERMS, NOW + 8_000), Step::Make);
        assert_eq!(trusted(&stored, NOW + 8_000), "");
        // Its successor is trusted already.
        let stored = Stored { next: authority(NOW + 6_500), ..stored };
        assert_eq!(plan(&stored, &TERMS, NOW + 9_000), Step::Promote);
        assert_eq!(plan(&stored, &TERMS, NOW + 20_000), Step::Make);
    }

    #[test]
    fn an_authority_of_a_clock_that_was_ahead_is_made_anew() {
        let stored = Stored { current: authority(NOW + 90_000), next: None, trusted: String::new() };
        assert_eq!(plan(&stored, &TERMS, NOW), Step::Make);
        let given = Terms { given: true, ..TERMS };
        assert_eq!(plan(&stored, &given, NOW), Step::Keep, "it is somebody's, and the error says what is wrong");
    }

    #[test]
    fn a_given_authority_is_waited_for_and_never_replaced() {
        let terms = Terms { given: true, ..TERMS };
        assert_eq!(plan(&Stored::default(), &terms, NOW), Step::Wait);
        let stored = Stored { current: authority(NOW), next: None, trusted: String::new() };
        for later in [0, 7_000, 9_000] {
            assert_eq!(plan(&stored, &terms, NOW + later), Step::Keep);
        }
    }

    #[test]
    fn what_is_no_authority_stays_and_is_told_of() {
        let pair = Pair { certificate: "mine".to_owned(), key: "mine too".to_owned() };
        let stored = Stored { current: Some(pair), ..Stored::default() };
        assert_eq!(plan(&stored, &TERMS, NOW), Step::Keep);
        assert!(signer(&stored).is_err());
    }

    #[test]
    fn the_predecessor_of_a_given_authority_stays_trusted_and_a_leaf_never_is() {
        let old = authority(NOW).unwrap();
        let leaf = Authority::from_pem(&old.certificate, &old.key).unwrap();
        let leaf = leaf.controller(Validity::starting(NOW, TERMS.certificate)).unwrap();
        let stored = Stored {
            current: authority(NOW + 10),
            next: None,
            trusted: format!("{}{}", old.certificate, leaf.certificate),
        };
        let all = trusted(&stored, NOW + 20);
        let found: Vec<_> = certificates(&all).collect();
        assert_eq!(found.len(), 2);
        assert!(trusts(&all, &old.certificate) && !trusts(&all, &leaf.certificate) && !trusts(&all, ""));
        assert_eq!(facts(&found[0]).unwrap().validity.made(), NOW + 10);
    }

    #[test]
    fn a_certificate_is_renewed_with_a_third_of_its_life_left() {
        let validity = Validity::starting(NOW, Duration::from_secs(900));
        assert!(!is_due(validity, NOW + 599) && is_due(validity, NOW + 600));
        assert!(is_due(validity, NOW - 3_601), "the clock was ahead when it was made");
    }
}
