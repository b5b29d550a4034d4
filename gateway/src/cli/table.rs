//! Texts for people: columns, times and sizes.

/// Lines of columns, the first line their names. The last column is as wide as it likes.
pub(super) fn table(names: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = names.iter().map(|name| width(name)).collect();
    for row in rows {
        for (column, text) in row.iter().enumerate() {
            widths[column] = widths[column].max(width(text));
        }
    }
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut lines = String::new();
    for row in std::iter::once(&names).chain(rows) {
        let mut line = String::new();
        for (column, text) in row.iter().enumerate() {
            line.push_str(text);
            line.extend(std::iter::repeat_n(' ', widths[column] - width(text) + 2));
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// `3 d 4 h`, `12 min`, `5 s`.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// `812 B`, `1.2 MB`, as decimal as the settings are.
pub(super) fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    while size >= 1_000.0 && unit + 1 < UNITS.len() {
        size /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest() {
        let rows = [vec!["föö".to_owned(), "1".to_owned()], vec!["b".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\nföö   1\nb\n");
    }

    #[test]
    fn figures_are_short() {
        let times = [5, 65, 3_725, 90_061].map(duration);
        assert_eq!(times, ["5 s", "1 min", "1 h 2 min", "1 d 1 h"]);
        assert_eq!([999, 1_234, 5_600_000].map(size), ["999 B", "1.2 kB", "5.6 MB"]);
    }
}
