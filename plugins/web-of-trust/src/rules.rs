//! What becomes of whom, without the gateway.

use std::collections::HashSet;

use nostr_gateway_plugin::{Event, Verdict};
use serde::Deserialize;

use crate::{build::Reach, key, work};

/// What passes whoever sent it, unless configured otherwise: profiles, lists of follows and of relays,
/// of which the web is made; requests to delete and to vanish, which may be about what came when the
/// author was in the web; and gift wraps, whose keys are made for one event.
const EXEMPT_KINDS: &[u16] = &[0, 3, 5, 62, 1_059, 10_002];

const MOST_ROOTS: usize = 16;
const MAX_AUTHORS: usize = 200_000;
const MOST_AUTHORS: usize = 400_000;
const REFRESH_S: u64 = 600;

/// `[config]`.
#[derive(Default)]
pub struct Settings {
    pub roots: Vec<String>,
    pub hops: Option<u8>,
    pub min_followers: Option<u16>,
    pub max_authors: Option<usize>,
    pub refresh_s: Option<u64>,
    pub exempt_kinds: Option<Vec<u16>>,
    pub unknown: Option<Unknown>,
    pub work_bits: Option<u32>,
    pub on_unready: Option<OnUnready>,
    pub reason: Option<String>,
}

/// What becomes of an event by somebody who is not in the web.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unknown {
    Reject,
    ShadowReject,
    /// It passes when it shows work (NIP-13).
    ProofOfWork,
}

/// What becomes of it while the web is being read.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnready {
    Pass,
    Refuse,
}

/// Decides by what is known of the author.
#[derive(Debug)]
pub struct Rules {
    exempt_kinds: HashSet<u16>,
    unknown: Unknown,
    work_bits: u32,
    on_unready: OnUnready,
    reason: String,
}

impl Settings {
    /// # Errors
    /// The text names the setting that is wrong.
    pub fn check(self) -> Result<(Rules, Reach), String> {
        let wrong = |setting: &str, want: &str| Err(format!("config.{setting}: want {want}"));
        if self.roots.len() > MOST_ROOTS {
            return wrong("roots", "at most 16 public keys");
        }
        let key = |(index, text): (usize, &String)| {
            key::parse(text).ok_or_else(|| {
                format!("config.roots[{index}]: want a public key of 64 hexadecimal digits")
            })
        };
        let roots = self.roots.iter().enumerate().map(key).collect::<Result<_, _>>()?;
        let reach = Reach {
            roots,
            hops: self.hops.unwrap_or(2),
            min_followers: self.min_followers.unwrap_or(1),
            most: self.max_authors.unwrap_or(MAX_AUTHORS),
            refresh: self.refresh_s.unwrap_or(REFRESH_S),
        };
        if !(1..=2).contains(&reach.hops) {
            return wrong("hops", "1 or 2");
        }
        if !(1..=MOST_AUTHORS).contains(&reach.most) {
            return wrong("max_authors", "a number from 1 to 400000");
        }
        let work_bits = self.work_bits.unwrap_or(20);
        let rules = Rules {
            exempt_kinds: match self.exempt_kinds {
                Some(kinds) => kinds.into_iter().collect(),
                None => EXEMPT_KINDS.iter().copied().collect(),
            },
            unknown: self.unknown.unwrap_or(Unknown::Reject),
            on_unready: self.on_unready.unwrap_or(OnUnready::Pass),
            reason: match (self.reason, self.unknown) {
                (Some(reason), _) => reason,
                (None, Some(Unknown::ProofOfWork)) => format!(
                    "pow: {work_bits} bits of work are wanted of authors whom nobody here knows"
                ),
                (None, _) => "restricted: nobody here knows this author".to_owned(),
            },
            work_bits,
        };
        Ok((rules, reach))
    }
}

impl Rules {
    /// `is_known` is whether the author is in the web, `None` while it is being read.
    pub fn judge(&self, event: &Event, is_known: Option<bool>) -> Verdict {
        let has_worked =
            || self.unknown == Unknown::ProofOfWork && work::shown(event) >= self.work_bits;
        match (is_known, self.on_unready) {
            (Some(true), _) | (None, OnUnready::Pass) => Verdict::Accept,
            _ if self.exempt_kinds.contains(&event.kind) || has_worked() => Verdict::Accept,
            (None, OnUnready::Refuse) => Verdict::Reject(
                "error: whom people here follow is still being read; try again soon".to_owned(),
            ),
            (Some(false), _) if self.unknown == Unknown::ShadowReject => Verdict::ShadowReject,
            (Some(false), _) => Verdict::Reject(self.reason.clone()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn event(pubkey: &str, kind: u16, tags: &[&[&str]]) -> Event {
        let tag = |tag: &&[&str]| tag.iter().map(|&value| value.to_owned()).collect();
        Event {
            id: "0fff".repeat(16),
            pubkey: pubkey.to_owned(),
            created_at: 1,
            kind,
            tags: tags.iter().map(tag).collect(),
            content: String::new(),
            sig: String::new(),
        }
    }

    fn settings() -> Settings {
        Settings { roots: vec!["aa".repeat(32)], ..Settings::default() }
    }

    fn note() -> Event {
        event(&"bb".repeat(32), 1, &[])
    }

    #[test]
    fn the_known_pass_and_the_unknown_do_not() {
        let (rules, _) = settings().check().unwrap();
        assert_eq!(rules.judge(&note(), Some(true)), Verdict::Accept);
        let refused = Verdict::Reject("restricted: nobody here knows this author".to_owned());
        assert_eq!(rules.judge(&note(), Some(false)), refused);
        assert_eq!(rules.judge(&note(), None), Verdict::Accept);
        for kind in EXEMPT_KINDS {
            assert_eq!(rules.judge(&event("", *kind, &[]), Some(false)), Verdict::Accept);
        }
        let strict = Settings {
            on_unready: Some(OnUnready::Refuse),
            unknown: Some(Unknown::ShadowReject),
            exempt_kinds: Some(vec![7]),
            ..settings()
        };
        let (rules, _) = strict.check().unwrap();
        assert_eq!(rules.judge(&note(), Some(false)), Verdict::ShadowReject);
        assert!(
            matches!(rules.judge(&note(), None), Verdict::Reject(text) if text.contains("again"))
        );
        assert_eq!(rules.judge(&event("", 0, &[]), Some(false)), Verdict::ShadowReject);
        assert_eq!(rules.judge(&event("", 7, &[]), None), Verdict::Accept);
    }

    #[test]
    fn work_opens_the_door() {
        let settings = Settings {
            unknown: Some(Unknown::ProofOfWork),
            work_bits: Some(4),
            on_unready: Some(OnUnready::Refuse),
            ..settings()
        };
        let (rules, _) = settings.check().unwrap();
        let worked = event("", 1, &[&["nonce", "7", "4"]]);
        assert_eq!(rules.judge(&worked, Some(false)), Verdict::Accept);
        assert_eq!(rules.judge(&worked, None), Verdict::Accept);
        let told = "pow: 4 bits of work are wanted of authors whom nobody here knows";
        assert_eq!(rules.judge(&note(), Some(false)), Verdict::Reject(told.to_owned()));
        let less = event("", 1, &[&["nonce", "7", "3"]]);
        assert!(matches!(rules.judge(&less, Some(false)), Verdict::Reject(_)));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let error = |settings: Settings| settings.check().unwrap_err();
        let roots = vec!["aa".repeat(32); 17];
        assert!(error(Settings { roots, ..Settings::default() }).starts_with("config.roots: want"));
        let roots = vec!["aa".repeat(32), "x".to_owned()];
        assert!(error(Settings { roots, ..Settings::default() }).starts_with("config.roots[1]: "));
        assert_eq!(error(Settings { hops: Some(3), ..settings() }), "config.hops: want 1 or 2");
        assert!(error(Settings { max_authors: Some(0), ..settings() }).contains("max_authors"));
        let (_, reach) = settings().check().unwrap();
        assert_eq!((reach.hops, reach.min_followers, reach.most), (2, 1, MAX_AUTHORS));
    }
}
