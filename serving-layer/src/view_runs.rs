//! Which rows of a batch view belong to which series. Must not know what the other columns mean.

use wye_domain::reading::TextColumn;
use wye_domain::series::SeriesId;

use crate::directory::Directory;

/// The runs of rows of one series, with its number.
pub(crate) fn runs(
    series: &TextColumn<'_>,
    rows: usize,
    directory: &Directory,
) -> Vec<(std::ops::Range<usize>, Option<SeriesId>)> {
    let mut found: Vec<(std::ops::Range<usize>, Option<usize>)> = Vec::new();
    for row in 0..rows {
        let code = series.code(row);
        match found.last_mut() {
            Some((range, last)) if *last == code => range.end = row + 1,
            _ => found.push((row..row + 1, code)),
        }
    }
    let texts = found.iter().map(|(_, code)| code.map_or("", |code| series.words().value(code)));
    let ids = directory.resolve(texts);
    found.into_iter().zip(ids).map(|((range, _), id)| (range, id)).collect()
}
