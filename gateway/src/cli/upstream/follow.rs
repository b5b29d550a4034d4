//! What `upstream show` tells of a stream that follows public keys.

use serde_json::Value;

use crate::cli::{
    table::{duration, table},
    text::{list, number, text},
};

/// How authors are spread over relays, what is wrong, and what was done instead.
pub(super) fn followed(follow: &Value) -> String {
    let figure = |name: &str| number(&follow[name]);
    let mut lines = vec![
        String::new(),
        format!(
            "{} authors, {} of them with a relay list: {} are asked for at home, {} elsewhere \
             instead, {} nowhere",
            figure("authors"),
            figure("with_list"),
            figure("at_home"),
            figure("stood_in"),
            figure("nowhere"),
        ),
    ];
    match figure("too_many") {
        0 => {}
        more => lines.push(format!("{more} more are followed and left out: they are too many")),
    }
    for key in list(&follow["without_follows"]) {
        lines.push(format!("the list of follows of {} was not found yet", text(key)));
    }
    let rows: Vec<_> = list(&follow["relays"]).iter().map(relay).collect();
    if !rows.is_empty() {
        lines.push(String::new());
        lines.push(table(&["RELAY", "ROLE", "AUTHORS", "INSTEAD OF HOME", "AWAY"], &rows));
    }
    lines.extend(list(&follow["exceptions"]).iter().map(exception));
    let rows: Vec<_> = list(&follow["not_opened"]).iter().map(not_opened).collect();
    if !rows.is_empty() {
        lines.push(String::new());
        lines.push(table(&["NOT OPENED", "AUTHORS", "WITHOUT HOME", "WHY"], &rows));
    }
    let refused = follow["refused_urls"].as_object().into_iter().flatten();
    let refused: Vec<_> = refused.map(|(why, urls)| format!("{why} {}", number(urls))).collect();
    if !refused.is_empty() {
        lines.push(format!("URLs on lists that are not used: {}", refused.join(", ")));
    }
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end_matches('\n')).collect();
    lines.join("\n") + "\n"
}

fn relay(relay: &Value) -> Vec<String> {
    let away = relay["away_s"].as_u64().map_or_else(|| "-".to_owned(), duration);
    let figure = |name: &str| number(&relay[name]).to_string();
    vec![text(&relay["url"]), text(&relay["role"]), figure("authors"), figure("stand_ins"), away]
}

fn exception(exception: &Value) -> String {
    let authors = number(&exception["authors"]);
    let instead = exception["instead"].as_object().into_iter().flatten();
    let mut instead: Vec<_> =
        instead.map(|(url, authors)| format!("{} at {url}", number(authors))).collect();
    match number(&exception["nothing_instead"]) {
        0 => {}
        nothing => instead.push(format!("{nothing} nowhere else")),
    }
    let away: Vec<_> = list(&exception["away"]).iter().map(text).collect();
    let away = if away.is_empty() { String::new() } else { format!(" ({})", away.join(", ")) };
    let keys: Vec<_> = list(&exception["keys"]).iter().map(text).collect();
    let more = if authors > keys.len() as u64 { ", …" } else { "" };
    format!(
        "\n{authors} authors, {}{away}; asked for instead: {}\n  {}{more}",
        text(&exception["why"]),
        instead.join(", "),
        keys.join(", "),
    )
}

fn not_opened(relay: &Value) -> Vec<String> {
    let figure = |name: &str| number(&relay[name]).to_string();
    let again = relay["again_in_s"].as_u64();
    let again = again.map_or_else(String::new, |s| format!("; tried again in {}", duration(s)));
    let why = format!("{}{again}", text(&relay["why"]));
    vec![text(&relay["url"]), figure("authors"), figure("without_home"), why]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_what_was_done() {
        let follow = serde_json::json!({
            "authors": 9, "with_list": 7, "at_home": 5, "stood_in": 4, "nowhere": 0, "too_many": 2,
            "without_follows": ["ab"],
            "relays": [
                {"url": "wss://a", "role": "home", "authors": 5, "stand_ins": 2, "away_s": null},
                {"url": "wss://b", "role": "home", "authors": 2, "stand_ins": 0, "away_s": 75},
            ],
            "exceptions": [
                {"why": "no relay list", "authors": 2, "keys": ["k1", "k2"], "away": [],
                 "instead": {"wss://a": 2}, "nothing_instead": 0},
                {"why": "all relays away", "authors": 2, "keys": ["k3"], "away": ["wss://b"],
                 "instead": {"wss://a": 1}, "nothing_instead": 1},
            ],
            "not_opened": [
                {"url": "wss://c", "authors": 1, "without_home": 1, "why": "given up",
                 "again_in_s": 3_600},
            ],
            "refused_urls": {"private address": 3},
        });
        let expected = "
9 authors, 7 of them with a relay list: 5 are asked for at home, 4 elsewhere instead, 0 nowhere
2 more are followed and left out: they are too many
the list of follows of ab was not found yet

RELAY    ROLE  AUTHORS  INSTEAD OF HOME  AWAY
wss://a  home  5        2                -
wss://b  home  2        0                1 min

2 authors, no relay list; asked for instead: 2 at wss://a
  k1, k2

2 authors, all relays away (wss://b); asked for instead: 1 at wss://a, 1 nowhere else
  k3, …

NOT OPENED  AUTHORS  WITHOUT HOME  WHY
wss://c     1        1             given up; tried again in 1 h 0 min
URLs on lists that are not used: private address 3
";
        assert_eq!(followed(&follow), expected);
    }
}
