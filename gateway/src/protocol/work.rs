//! Proof of work (NIP-13).

use super::{Event, EventId, Prefix, Reason};

/// The number of leading zero bits of an id: how much work it shows.
pub fn difficulty(id: &EventId) -> u32 {
    let zero_bytes = id.0.iter().take_while(|byte| **byte == 0).count();
    let rest = id.0.get(zero_bytes).map_or(0, |byte| byte.leading_zeros());
    u32::try_from(zero_bytes).unwrap_or(0) * 8 + rest
}

/// The difficulty that a `nonce` tag commits to. Nobody can aim low and be lucky then.
fn target(event: &Event) -> Option<u32> {
    let nonce = event.tags.iter().find(|tag| tag.first().is_some_and(|name| name == "nonce"))?;
    nonce.get(2)?.parse().ok()
}

/// Why the event shows too little work, or `None`. 0 asks for none. A target that the event states
/// must reach the minimum too; it may state none.
pub fn refusal(event: &Event, min: u32) -> Option<Reason> {
    if min == 0 {
        return None;
    }
    let shown = difficulty(&event.id);
    let text = if shown < min {
        format!("difficulty {shown} is less than {min}")
    } else {
        match target(event) {
            Some(target) if target < min => {
                format!("the target difficulty {target} in the nonce tag is less than {min}")
            }
            _ => return None,
        }
    };
    Some(Reason::new(Prefix::Pow, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    #[test]
    fn bits_are_counted_as_in_nip_13() {
        let of = |text: &str| difficulty(&EventId::parse(text).unwrap());
        assert_eq!(of("000000000e9d97a1ab09fc381030b346cdd7a142ad57e6df0b46dc9bef6c7e2d"), 36);
        assert_eq!(of("000006d8c378af1779d2feebc7603a125d99eca0ccf1085959b307f64e5dd358"), 21);
        assert_eq!(of(&"f".repeat(64)), 0);
        assert_eq!(of(&"0".repeat(64)), 256);
    }

    #[test]
    fn both_the_work_and_the_stated_target_count() {
        let mined = |target: &str| {
            (0..)
                .map(|n: u32| Author::new(1).sign(1, 1, &[&["nonce", &n.to_string(), target]], ""))
                .find(|event| difficulty(&event.id) >= 6)
                .unwrap()
        };
        assert_eq!(refusal(&mined("6"), 6), None);
        assert_eq!(refusal(&mined("not a number"), 6), None);
        let lucky = refusal(&mined("5"), 6).unwrap().to_string();
        assert_eq!(lucky, "pow: the target difficulty 5 in the nonce tag is less than 6");
        let lazy = (0..)
            .map(|n: u32| Author::new(1).sign(1, 1, &[], &n.to_string()))
            .find(|event| difficulty(&event.id) == 0)
            .unwrap();
        assert_eq!(refusal(&lazy, 6).unwrap().to_string(), "pow: difficulty 0 is less than 6");
        assert_eq!(refusal(&lazy, 0), None);
    }
}
