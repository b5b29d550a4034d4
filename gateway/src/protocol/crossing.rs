//! What belongs to a stream between this gateway and another relay: what its filter matches, and the
//! requests that act on such events.

use super::{
    Event, Filter,
    kinds::{DELETION, VANISH},
};

/// Whether the event belongs to a stream with this filter. A request to delete (NIP-09) or to vanish
/// (NIP-62) does when events on which it acts may: otherwise these would stay on the other side.
pub fn concerns(filter: &Filter, event: &Event) -> bool {
    filter.matches(event) || acts_on_such(filter, event)
}

/// What a relay is asked for beside the filter, so that it also sends the requests which act on what the
/// filter matches. [`concerns`] then tells which of them to take. `None` when the filter matches them.
pub fn requests(filter: &Filter) -> Option<Filter> {
    let is_narrow = filter.ids.is_some() || !filter.tags.is_empty() || filter.words().is_some();
    let has_kind = |kind| filter.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind));
    if !is_narrow && has_kind(DELETION) && has_kind(VANISH) {
        return None;
    }
    let (authors, since) = (filter.authors.clone(), filter.since);
    let requests = match &filter.ids {
        Some(ids) => {
            let ids = ids.iter().map(ToString::to_string).collect();
            let tags = vec![(b'e', ids)];
            Filter { kinds: Some(vec![DELETION]), authors, tags, since, ..Filter::default() }
        }
        None => Filter { kinds: Some(vec![DELETION, VANISH]), authors, since, ..Filter::default() },
    };
    Some(requests)
}

fn acts_on_such(filter: &Filter, event: &Event) -> bool {
    // Both act on older events of their own author alone.
    let is_possible = filter.since.is_none_or(|since| event.created_at >= since)
        && filter.authors.as_ref().is_none_or(|authors| authors.contains(&event.pubkey));
    match event.kind {
        VANISH => is_possible,
        DELETION => is_possible && may_delete_such(filter, event),
        _ => false,
    }
}

/// Whether what a request deletes may be what the filter matches, by ids and kinds. What it does not
/// tell is possible.
fn may_delete_such(filter: &Filter, event: &Event) -> bool {
    if let Some(ids) = &filter.ids {
        return event.tag_values("e").any(|id| ids.iter().any(|known| known.to_string() == id));
    }
    let Some(kinds) = &filter.kinds else { return true };
    let of_addresses = event.tag_values("a").filter_map(|address| address.split(':').next());
    let told: Vec<&str> = event.tag_values("k").chain(of_addresses).collect();
    let names_more =
        event.tag_values("e").next().is_some() && event.tag_values("k").next().is_none();
    names_more || told.iter().any(|kind| kind.parse().is_ok_and(|kind: u16| kinds.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::signing::Author;

    fn filter(json: &str) -> Filter {
        Filter::parse(json).unwrap()
    }

    #[test]
    fn a_request_belongs_to_the_stream_of_what_it_acts_on() {
        let (author, other) = (Author::new(1), Author::new(2));
        let note = author.sign(100, 1, &[&["t", "cats"]], "meow");
        let id = note.id.to_string();
        let address = format!("30023:{}:d", note.pubkey);
        let delete = |tags: &[&[&str]]| author.sign(200, 5, tags, "");
        let cats = filter(r##"{"kinds":[1],"#t":["cats"]}"##);
        assert!(concerns(&cats, &note));
        assert!(concerns(&cats, &delete(&[&["e", &id]])), "it may be a note");
        assert!(concerns(&cats, &delete(&[&["e", &id], &["k", "1"]])));
        assert!(!concerns(&cats, &delete(&[&["e", &id], &["k", "7"]])), "reactions are not ours");
        assert!(!concerns(&cats, &delete(&[&["a", &address]])));
        assert!(!concerns(&cats, &delete(&[])), "it deletes nothing");
        assert!(concerns(&filter(r#"{"kinds":[30023]}"#), &delete(&[&["a", &address]])));
        assert!(concerns(&cats, &author.sign(200, 62, &[&["relay", "ALL_RELAYS"]], "")));
        assert!(!concerns(&cats, &author.sign(200, 1, &[], "no cats")));

        let of_author = filter(&format!(r#"{{"kinds":[1],"authors":["{}"]}}"#, note.pubkey));
        assert!(concerns(&of_author, &delete(&[&["e", &id]])));
        assert!(!concerns(&of_author, &other.sign(200, 5, &[&["e", &id]], "")));
        assert!(!concerns(&of_author, &other.sign(200, 62, &[&["relay", "ALL_RELAYS"]], "")));
        let of_late = filter(r#"{"kinds":[1],"since":300}"#);
        assert!(!concerns(&of_late, &delete(&[&["e", &id]])), "what it deletes is older");
        let of_id = filter(&format!(r#"{{"ids":["{id}"]}}"#));
        assert!(concerns(&of_id, &delete(&[&["e", &id]])));
        assert!(!concerns(&of_id, &delete(&[&["e", &"0".repeat(64)]])));
    }

    #[test]
    fn a_relay_is_asked_for_requests_unless_it_sends_them_anyway() {
        for whole in ["{}", r#"{"kinds":[1,5,62]}"#, r#"{"since":5}"#] {
            assert_eq!(requests(&filter(whole)), None, "{whole}");
        }
        for (narrow, asked) in [
            (r#"{"kinds":[1],"limit":5,"until":9}"#, r#"{"kinds":[5,62]}"#.to_owned()),
            (r#"{"kinds":[1,5],"since":7}"#, r#"{"kinds":[5,62],"since":7}"#.to_owned()),
            (r##"{"#t":["cats"]}"##, r#"{"kinds":[5,62]}"#.to_owned()),
            (
                &format!(r#"{{"ids":["{}"]}}"#, "a".repeat(64)),
                format!(r##"{{"kinds":[5],"#e":["{}"]}}"##, "a".repeat(64)),
            ),
        ] {
            assert_eq!(requests(&filter(narrow)), Some(filter(&asked)), "{narrow}");
        }
    }
}
