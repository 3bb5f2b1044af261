//! Sums and quantiles without rounding.

/// A sum of floats that is never rounded.
///
/// Source: Shewchuk, "Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates" (1997), grow
/// expansion: the parts do not overlap, and their sum is exact.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExactSum {
    parts: Vec<f64>,
}

impl ExactSum {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sum = Self::default();
        values.iter().for_each(|value| sum.add(*value));
        sum
    }

    pub(crate) fn add(&mut self, value: f64) {
        let mut rest = value;
        let mut kept = 0;
        for at in 0..self.parts.len() {
            let part = self.parts[at];
            let (large, small) = if rest.abs() < part.abs() { (part, rest) } else { (rest, part) };
            let high = large + small;
            let low = small - (high - large);
            if low != 0.0 {
                self.parts[kept] = low;
                kept += 1;
            }
            rest = high;
        }
        self.parts.truncate(kept);
        self.parts.push(rest);
    }

    /// The nearest float, or one beside it.
    pub(crate) fn value(&self) -> f64 {
        self.parts.iter().sum()
    }

    /// How far a number is from the sum.
    pub(crate) fn distance(&self, number: f64) -> f64 {
        let mut difference = self.clone();
        difference.add(-number);
        difference.value().abs()
    }
}

/// Whether a quantile sketch promises its precision for all of these values: they may be 17 orders of magnitude apart.
pub(crate) fn is_within_sketch(values: &[f64]) -> bool {
    let sizes = values.iter().map(|value| value.abs()).filter(|size| *size > 0.0);
    let (least, most) =
        sizes.fold((f64::INFINITY, 0.0), |(least, most), size| (size.min(least), size.max(most)));
    most / 1e17 <= least
}

/// The value at the rank `ceil(q * n)` in ascending order.
pub(crate) fn quantile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent * sorted.len()).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// The sample standard deviation, in two passes.
pub(crate) fn stddev(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = ExactSum::of(values).value() / values.len() as f64;
    let squares: Vec<f64> = values.iter().map(|value| (value - mean) * (value - mean)).collect();
    Some((ExactSum::of(&squares).value() / (values.len() - 1) as f64).sqrt())
}
