//! What of an event people search for.

use crate::protocol::{Event, kinds, text};

/// Bytes of one event's text that are indexed at most. Nobody looks for the end of a longer one.
const MAX_TEXT: usize = 64 << 10;

/// How the text of a kind is found.
#[derive(Clone, Copy)]
enum Form {
    /// The content, and the tags that say what it is about.
    Plain,
    /// The content is JSON with the fields of a profile.
    Profile,
    /// The content says nothing to people; the tags do.
    Tags,
}

/// The kinds with texts for people. All others are left out: reactions (7), reposts (6, 16) and lists
/// only point at events; deletions (5), reports and zaps are about events; direct messages, seals and
/// gift wraps (4, 13, 1059, 21059) are nobody else's business; settings and wallets are data.
const fn form(kind: u16) -> Option<Form> {
    Some(match kind {
        // NIP-24 profiles, NIP-28 channels, NIP-89 applications, NIP-15 stalls and products.
        0 | 40 | 41 | 31_990 | 30_017 | 30_018 => Form::Profile,
        // Notes, chats, threads and comments (NIP-01, C7, 7D, 22, 28, 53, 29, A4).
        1 | 9 | 11 | 42 | 1_111 | 1_311 | 24 => Form::Plain,
        // Pictures, videos, files, torrents (NIP-68, 71, 94, 35).
        20 | 21 | 22 | 34_235 | 34_236 | 1_063 | 2_003 | 2_004 => Form::Plain,
        // Code and its discussion (NIP-34, C0).
        1_337 | 1_617 | 1_618 | 1_621 | 1_622 => Form::Plain,
        // Highlights, goals, polls (NIP-84, 75, 88).
        9_802 | 9_041 | 1_068 => Form::Plain,
        // Articles and drafts, publications, wiki, advertisements, statuses, events of calendars
        // (NIP-23, 62b, 54, 99, 38, 52).
        30_023 | 30_024 | 30_041 | 30_818 | 30_402 | 30_403 | 30_315 | 31_922 | 31_923 => {
            Form::Plain
        }
        // Badges, live streams, repositories, communities, groups, calendars, indexes
        // (NIP-58, 53, 34, 72, 29, 52).
        30_009 | 30_311 | 30_312 | 30_617 | 34_550 | 39_000 | 31_924 | 30_040 => Form::Tags,
        _ => return None,
    })
}

/// Tags with words for people, the weightiest first.
const TAGS: [&str; 6] = ["title", "name", "subject", "summary", "description", "location"];
/// Those that count twice: whoever names a thing names it here.
const NAMES: usize = 3;

/// Fields of a profile, the weightiest first.
const FIELDS: [&str; 7] =
    ["name", "display_name", "displayName", "nip05", "about", "description", "title"];
const FIELD_NAMES: usize = 3;

/// Puts the words of an event into `out`, in place of what is there. Returns whether there are any.
pub(in crate::store) fn words(event: &Event, out: &mut String) -> bool {
    out.clear();
    let Some(form) = form(event.kind) else { return false };
    debug_assert!(!kinds::is_confidential(event.kind), "only what everybody may read is indexed");
    for (n, tag) in TAGS.iter().enumerate() {
        for value in event.tag_values(tag) {
            append(value, n < NAMES, out);
        }
    }
    match form {
        Form::Plain => append(&event.content, false, out),
        Form::Profile => profile(&event.content, out),
        Form::Tags => {}
    }
    !out.is_empty()
}

fn profile(content: &str, out: &mut String) {
    if let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(content) {
        for (n, name) in FIELDS.iter().enumerate() {
            if let Some(serde_json::Value::String(value)) = fields.get(*name) {
                append(value, n < FIELD_NAMES, out);
            }
        }
    }
}

fn append(value: &str, twice: bool, out: &mut String) {
    let left = MAX_TEXT.saturating_sub(out.len());
    let value = &value[..value.floor_char_boundary(left)];
    text::append_words(value, out);
    if twice {
        text::append_words(value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    fn of(kind: u16, tags: &[&[&str]], content: &str) -> String {
        let mut out = String::from("left over");
        words(&Author::new(1).sign(1, kind, tags, content), &mut out);
        out
    }

    #[test]
    fn people_find_what_people_wrote() {
        assert_eq!(of(1, &[&["t", "cats"]], "Hello #cats"), "hello cats ");
        assert_eq!(
            of(0, &[], r#"{"name":"Zoë","about":"Likes cats","picture":"https://x","nip05":7}"#),
            "zoë zoë likes cats "
        );
        assert_eq!(
            of(30_023, &[&["title", "On Cats"], &["summary", "Why"]], "They purr."),
            "on cats on cats why they purr "
        );
        assert_eq!(of(34_550, &[&["name", "Cats"]], "not this"), "cats cats ");
    }

    #[test]
    fn what_is_not_for_people_is_not_indexed() {
        for kind in [3, 4, 5, 6, 7, 13, 16, 1_059, 9_735, 10_002, 30_078, 30_000] {
            assert_eq!(of(kind, &[&["title", "x"]], "secret"), "", "kind {kind}");
        }
        assert_eq!(of(0, &[], "no json"), "");
        assert_eq!(of(1, &[], ""), "");
        assert!(of(1, &[], &"word ".repeat(100_000)).len() <= MAX_TEXT + 1);
    }
}
