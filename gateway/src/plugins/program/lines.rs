//! Lines from a pipe, of bounded length.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// What came by a pipe.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without its end.
    Whole(Vec<u8>),
    /// The beginning of one that is too long; the rest is left out.
    Cut(Vec<u8>),
    /// The other end is closed.
    End,
}

/// Reads lines. What was read of one is kept when a read is given up.
pub struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    max: usize,
    /// The rest of a line that was told is still to be left out.
    skips: bool,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(pipe: R, max: usize) -> Self {
        let reader = BufReader::new(pipe);
        Self { reader, line: Vec::new(), max, skips: false, ended: false }
    }

    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next line that is not empty.
    ///
    /// # Errors
    /// When the pipe breaks.
    pub async fn next(&mut self) -> io::Result<Line> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                self.ended = true;
                let line = std::mem::take(&mut self.line);
                let is_line = !line.trim_ascii().is_empty() && !self.skips;
                return Ok(if is_line { Line::Whole(line) } else { Line::End });
            }
            let end = memchr::memchr(b'\n', bytes);
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let fits = part.len() <= self.max.saturating_sub(self.line.len());
            if !self.skips {
                let room = self.max.saturating_sub(self.line.len()).min(part.len());
                self.line.extend_from_slice(&part[..room]);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            let was_told = self.skips;
            self.skips = end.is_none() && (was_told || !fits);
            if was_told {
                continue;
            }
            if !fits {
                return Ok(Line::Cut(std::mem::take(&mut self.line)));
            }
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                if !line.trim_ascii().is_empty() {
                    return Ok(Line::Whole(line));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_empty_ones_left_out() {
        let text = format!("\n \r\none\r\n{}\ntwo\n{}", "x".repeat(30_000), "y".repeat(10));
        let mut lines = Lines::new(text.as_bytes(), 10);
        assert_eq!(lines.next().await.unwrap(), Line::Whole(b"one\r".to_vec()));
        assert_eq!(lines.next().await.unwrap(), Line::Cut(b"xxxxxxxxxx".to_vec()));
        assert_eq!(lines.next().await.unwrap(), Line::Whole(b"two".to_vec()));
        assert_eq!(lines.next().await.unwrap(), Line::Whole(b"yyyyyyyyyy".to_vec()));
        assert_eq!(lines.next().await.unwrap(), Line::End);
        assert!(lines.has_ended());
    }
}
