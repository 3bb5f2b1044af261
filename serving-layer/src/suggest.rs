//! Names that are close to one that is unknown, for messages.

/// Nothing is looked for that is close to a longer name.
const LONGEST: usize = 256;

/// At most three known names that are close to one.
pub(crate) fn close_names<S: AsRef<str>>(name: &str, known: &[S]) -> Vec<String> {
    if name.len() > LONGEST {
        return Vec::new();
    }
    let lower = name.to_lowercase();
    let far = (name.chars().count() / 3).max(2);
    let mut close: Vec<(usize, &str)> = known
        .iter()
        .map(|candidate| (distance(&lower, &candidate.as_ref().to_lowercase()), candidate.as_ref()))
        .filter(|(distance, _)| *distance <= far)
        .collect();
    close.sort();
    close.into_iter().take(3).map(|(_, name)| format!("{name:?}")).collect()
}

/// The edit distance; Wagner and Fischer, "The String-to-String Correction Problem" (1974).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_close() {
        let known = ["PM2.5", "PM10", "line_temperature"].map(str::to_owned);
        assert_eq!(close_names("pm25", &known), ["\"PM2.5\"", "\"PM10\""]);
        assert_eq!(close_names("line_temprature", &known), ["\"line_temperature\""]);
        assert!(close_names("volume", &known).is_empty());
    }
}
