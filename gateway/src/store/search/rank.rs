//! From a search to rows, best first.

use rusqlite::{Connection, params};

use super::Lent;
use crate::protocol::search::{Search, Term};

/// How many of the newest matches are ranked against one another at first. More are looked at only
/// when a filter's other conditions leave too few of them.
const FIRST_CHUNK: usize = 4_096;
const LARGEST_CHUNK: usize = 65_536;

/// The parts of the index: one for more than a hundred thousand log entries.
pub(in crate::store) const PARTS: &str = "SELECT part FROM parts ORDER BY part";

/// The newest matches below a row, in one part of the index.
pub(in crate::store) fn matches_sql(part: i64, ranked: bool) -> String {
    let rank = if ranked { format!("bm25(part_{part})") } else { "0.0".to_owned() };
    // No LIMIT: a bound one makes SQLite plan the statement anew each time.
    format!(
        "SELECT rowid, {rank} FROM part_{part} WHERE part_{part} MATCH ?1 AND rowid < ?2 \
         ORDER BY rowid DESC"
    )
}

/// The rows that match a search, in chunks: the newest ones, ranked, then older ones.
pub(in crate::store) struct Candidates {
    connection: Lent,
    /// What FTS5 is asked; `None` when nothing can match.
    question: Option<String>,
    /// The parts of the index that were not read to their end, newest last.
    parts: Vec<i64>,
    /// Rows of the last part from here on have been given out.
    below: i64,
    chunk: usize,
    ranked: bool,
    /// The rest of a chunk; the best is the last.
    ready: Vec<i64>,
}

impl Candidates {
    /// `ranked` is whether the order matters.
    pub(super) fn new(connection: Lent, search: &Search, ranked: bool) -> rusqlite::Result<Self> {
        let parts = connection
            .prepare_cached(PARTS)?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self {
            question: question(search),
            connection,
            parts,
            below: i64::MAX,
            chunk: FIRST_CHUNK,
            ranked,
            ready: Vec::new(),
        })
    }

    /// The next row, best first. It may be of an event that is gone. `check` is asked for each row
    /// that is read, and ends it with an error.
    pub fn next_row<E: From<rusqlite::Error>>(
        &mut self,
        check: impl Fn() -> Result<(), E>,
    ) -> Result<Option<i64>, E> {
        if self.ready.is_empty() {
            self.read_chunk(check)?;
        }
        Ok(self.ready.pop())
    }

    fn read_chunk<E: From<rusqlite::Error>>(
        &mut self,
        check: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut found: Vec<(f64, i64)> = Vec::new();
        let Some(question) = &self.question else { return Ok(()) };
        while let Some(part) = self.parts.last()
            && found.len() < self.chunk
        {
            let wanted = self.chunk - found.len();
            let before = found.len();
            let connection: &Connection = &self.connection;
            let mut stopped = None;
            let goes_on = || match check() {
                Ok(()) => true,
                Err(stop) => {
                    stopped = Some(stop);
                    false
                }
            };
            let asked = Asked { connection, part: *part, question, ranked: self.ranked };
            match asked.read(self.below, wanted, goes_on, &mut found) {
                Ok(()) => {}
                // Dropped since, because all its events are gone.
                Err(error) if error.to_string().contains("no such table") => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(stop) = stopped {
                return Err(stop);
            }
            match found.last() {
                Some((_, row)) if found.len() - before == wanted => self.below = *row,
                _ => {
                    self.parts.pop();
                    self.below = i64::MAX;
                }
            }
        }
        self.chunk = (self.chunk * 4).min(LARGEST_CHUNK);
        if self.ranked {
            // The best has the lowest number; of equals, the newest comes first.
            found.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        self.ready.extend(found.into_iter().map(|(_, row)| row));
        Ok(())
    }
}

/// A question to one part of the index.
struct Asked<'q> {
    connection: &'q Connection,
    part: i64,
    question: &'q str,
    ranked: bool,
}

impl Asked<'_> {
    /// The newest matches below a row, as long as it goes on.
    fn read(
        &self,
        below: i64,
        wanted: usize,
        mut goes_on: impl FnMut() -> bool,
        found: &mut Vec<(f64, i64)>,
    ) -> rusqlite::Result<()> {
        let Self { connection, part, question, ranked } = *self;
        let mut statement = connection.prepare_cached(&matches_sql(part, ranked))?;
        let mut rows = statement.query(params![question, below])?;
        for _ in 0..wanted {
            if !goes_on() {
                break;
            }
            let Some(row) = rows.next()? else { break };
            found.push((row.get(1)?, row.get(0)?));
        }
        Ok(())
    }
}

/// The search in FTS5's language. Every word of the client stands in quotation marks, so nothing that
/// it wrote is read as part of that language.
fn question(search: &Search) -> Option<String> {
    let quoted = |term: &Term| {
        let star = if term.prefix { " *" } else { "" };
        format!("\"{}\"{star}", term.words.replace('"', "\"\""))
    };
    let all = |excluded: bool, between: &str| {
        let terms = search.terms().iter();
        let terms = terms.filter(|term| term.excluded == excluded && !term.words.is_empty());
        terms.map(quoted).collect::<Vec<_>>().join(between)
    };
    let (wanted, unwanted) = (all(false, " AND "), all(true, " OR "));
    match (wanted.is_empty(), unwanted.is_empty()) {
        (true, _) => None,
        (false, true) => Some(wanted),
        (false, false) => Some(format!("({wanted}) NOT ({unwanted})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_client_is_read_as_syntax() {
        let ask = |text: &str| question(&Search::parse(text).unwrap());
        assert_eq!(ask("a OR b*").as_deref(), Some(r#""a" AND "or" AND "b""#));
        assert_eq!(
            ask(r#"nost* "b c" -d -"e f" (x):NEAR"#).as_deref(),
            Some(r#"("nost" * AND "b c" AND "x near") NOT ("d" OR "e f")"#)
        );
        assert_eq!(ask("🔥 -x"), None);
        assert_eq!(ask("🔥 fire").as_deref(), Some(r#""fire""#));
    }
}
