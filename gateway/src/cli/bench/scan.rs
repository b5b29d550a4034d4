//! Reading a relay's messages as text. The generator shares the machine with the relay, so a message
//! is looked at only as far as its kind and id: parsing every one would measure the parser.

/// What a message from a relay is.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Event,
    Eose,
    /// The 64 digits of the id, whether it was accepted, and what was said about it.
    Ok {
        id: &'a str,
        accepted: bool,
        message: &'a str,
    },
    /// A query was refused, or a subscription ended.
    Closed(&'a str),
    Notice(&'a str),
    Auth,
    Other,
}

/// Tells the messages apart. The relay may put spaces after commas, as some do.
pub fn frame(text: &str) -> Frame<'_> {
    let Some(rest) = text.trim_start().strip_prefix('[') else { return Frame::Other };
    let Some(rest) = rest.trim_start().strip_prefix('"') else { return Frame::Other };
    let Some((verb, rest)) = rest.split_once('"') else { return Frame::Other };
    match verb {
        "EVENT" => Frame::Event,
        "EOSE" => Frame::Eose,
        "OK" => ok(rest).unwrap_or(Frame::Other),
        "CLOSED" => Frame::Closed(last_string(rest)),
        "NOTICE" => Frame::Notice(last_string(rest)),
        "AUTH" => Frame::Auth,
        _ => Frame::Other,
    }
}

fn ok(rest: &str) -> Option<Frame<'_>> {
    let (_, rest) = rest.split_once('"')?;
    let (id, rest) = rest.split_once('"')?;
    let rest = rest.trim_start_matches([',', ' ']);
    let accepted = rest.starts_with("true");
    (accepted || rest.starts_with("false")).then(|| Frame::Ok {
        id,
        accepted,
        message: last_string(rest),
    })
}

/// What stands between the last two quotes. Escapes are left as they are: it is only shown.
fn last_string(text: &str) -> &str {
    let Some(end) = text.rfind('"') else { return "" };
    let text = &text[..end];
    let mut start = text.len();
    while let Some(quote) = text[..start].rfind('"') {
        if !text[..quote].ends_with('\\') {
            return &text[quote + 1..];
        }
        start = quote;
    }
    ""
}

/// The id in an EVENT message, whatever the order of the event's fields. A quote inside a text is
/// escaped, so `"id":"` is a key.
pub fn event_id(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once("\"id\"")?;
        let value = after.trim_start_matches([':', ' ']);
        if let Some(id) = value.strip_prefix('"').and_then(|value| value.get(..64)) {
            return Some(id);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let id = "ab".repeat(32);
        for (text, expected) in [
            (r#"["EVENT","s",{"id":"EOSE"}]"#.to_owned(), Frame::Event),
            (r#"["EOSE","EVENT"]"#.to_owned(), Frame::Eose),
            (r#"[ "EOSE", "x", ["finish"] ]"#.to_owned(), Frame::Eose),
            (
                format!(r#"["OK","{id}",true,""]"#),
                Frame::Ok { id: &id, accepted: true, message: "" },
            ),
            (
                format!(r#"["OK", "{id}", false, "blocked: \"true\" no"]"#),
                Frame::Ok { id: &id, accepted: false, message: r#"blocked: \"true\" no"# },
            ),
            (r#"["CLOSED","s","error: busy"]"#.to_owned(), Frame::Closed("error: busy")),
            (r#"["NOTICE","hello"]"#.to_owned(), Frame::Notice("hello")),
            (r#"["AUTH","challenge"]"#.to_owned(), Frame::Auth),
            (r#"["OK","x"]"#.to_owned(), Frame::Other),
            ("{}".to_owned(), Frame::Other),
            (String::new(), Frame::Other),
        ] {
            assert_eq!(frame(&text), expected, "{text}");
        }
    }

    #[test]
    fn an_id_is_found_wherever_it_stands() {
        let id = "cd".repeat(32);
        let compact = format!(r#"["EVENT","s",{{"id":"{id}","content":"x"}}]"#);
        let sorted = format!(r#"["EVENT","id",{{"content":"\"id\":\"no\"","id": "{id}"}}]"#);
        assert_eq!(event_id(&compact), Some(id.as_str()));
        assert_eq!(event_id(&sorted), Some(id.as_str()));
        assert_eq!(event_id(r#"["EVENT","s",{}]"#), None);
    }
}
