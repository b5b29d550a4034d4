//! Lengths of time on the command line.

/// Seconds, from a number with a unit.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write a time like 90s, 10m, 2h, 30d or 8w".to_owned();
    let unit = text.char_indices().next_back().map(|(at, _)| at).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        for (text, length) in
            [("0s", 0), ("90s", 90), ("10m", 600), ("2h", 7_200), ("30d", 2_592_000)]
        {
            assert_eq!(seconds(text), Ok(length));
        }
        for wrong in ["", "s", "10", "-1h", "1.5h", "1 h", "1y", "18446744073709551615w", "é"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
