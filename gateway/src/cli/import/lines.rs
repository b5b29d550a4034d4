//! A file of events, cut into parts that are handed over one by one.

use std::io::{self, BufRead, Read};

use super::{Sum, mark::Position};

/// Bytes of events that are handed over at once; one event may be longer.
const PART: usize = 1 << 20;
/// The longest line, in bytes. Whether an event is too long is for the gateway to say.
const LONGEST: u64 = 2 << 20;

/// Some lines of the file.
pub(super) struct Part {
    pub text: String,
    /// The number of the first line.
    pub first: u64,
    /// Lines that were read, and those that are none.
    pub sum: Sum,
    /// Behind its last line.
    pub end: Position,
}

/// The next lines; nothing at the end. A line that is far too long, or not UTF-8, is counted as refused, and
/// an empty one stands in its place, so that lines keep their numbers.
pub(super) fn read_part(reader: &mut dyn BufRead, begin: Position) -> io::Result<Option<Part>> {
    let mut part =
        Part { text: String::new(), first: begin.line + 1, sum: Sum::default(), end: begin };
    let mut line = Vec::new();
    while part.text.len() < PART {
        line.clear();
        let read = (&mut *reader).take(LONGEST).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        part.sum.lines += 1;
        part.end.line += 1;
        part.end.offset += read as u64;
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < LONGEST;
        if !is_whole {
            part.end.offset += skip_line(reader)?;
            part.sum.refuse(part.end.line, "invalid: the line is too long");
        } else if let Ok(text) = std::str::from_utf8(&line) {
            part.text.push_str(text.trim_end_matches(['\n', '\r']));
        } else {
            part.sum.refuse(part.end.line, "invalid: not UTF-8");
        }
        part.text.push('\n');
    }
    Ok((!part.text.is_empty()).then_some(part))
}

/// Returns how many bytes it had.
fn skip_line(reader: &mut dyn BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let bytes = reader.fill_buf()?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        reader.consume(used);
        skipped += used as u64;
        if end.is_some() || used == 0 {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_keep_their_numbers() {
        let mut text = b"one\r\n\n".to_vec();
        text.extend(vec![b'x'; LONGEST as usize + 100]);
        text.extend(b"\n\xff\xfe\nlast");
        let mut reader = text.as_slice();
        let part = read_part(&mut reader, Position::default()).unwrap().unwrap();
        assert_eq!((&*part.text, part.first), ("one\n\n\n\nlast\n", 1));
        assert_eq!((part.sum.lines, part.sum.refused), (5, 2));
        assert_eq!(part.sum.first, Some((3, "invalid: the line is too long".to_owned())));
        assert_eq!(part.end, Position { line: 5, offset: text.len() as u64 });
        assert!(read_part(&mut reader, part.end).unwrap().is_none());
    }

    #[test]
    fn much_is_handed_over_in_parts_that_know_where_they_end() {
        let line = "y".repeat(1_000) + "\n";
        let text = line.repeat(3_000);
        let (mut at, mut parts) = (Position::default(), Vec::new());
        let mut reader = text.as_bytes();
        while let Some(part) = read_part(&mut reader, at).unwrap() {
            assert!(part.text.len() < PART + 1_001 && part.first == at.line + 1);
            assert_eq!(&text[at.offset as usize..part.end.offset as usize], part.text);
            at = part.end;
            parts.push(part.text);
        }
        assert!(parts.len() > 2 && parts.concat() == text && at.line == 3_000);
    }
}
