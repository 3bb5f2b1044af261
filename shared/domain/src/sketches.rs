//! Mergeable sketches inside a summary: quantiles by DDSketch, distinct devices by HyperLogLog.
//!
//! Sources: Masson, Rim, Lee, "DDSketch" (VLDB 2019), relative accuracy 1 %; Flajolet et al., "HyperLogLog" (2007), in
//! the Apache DataSketches form, 2^12 registers, standard error 1.6 %. Both merges are commutative and associative on
//! the sketch's state; the composite estimator is used because it does not depend on the order of updates.
//!
//! Stability: the stored bytes are the DataSketches HLL format and the DDSketch format of the Java library.

use datasketches::hll::{HllSketch, HllType, HllUnion};
use sketches_ddsketch::{Config, DDSketch};

use crate::DomainError;

/// 2^12 registers.
const LG_K: u8 = 12;

/// Which sketches a metric's aggregates ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// p50, p95 or p99 is asked for.
    pub quantiles: bool,
    /// `distinct_devices` is asked for.
    pub distinct: bool,
}

impl Needs {
    /// Whether a summary has a sketch at all.
    pub fn any(self) -> bool {
        self.quantiles || self.distinct
    }
}

/// The sketches of one group in one window.
#[derive(Clone)]
pub struct Sketches {
    quantiles: Option<DDSketch>,
    distinct: Option<HllSketch>,
}

impl std::fmt::Debug for Sketches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let distinct = self.distinct.as_ref().map(HllSketch::composite_estimate);
        write!(f, "Sketches {{ p50: {:?}, distinct: {distinct:?} }}", self.quantile(0.5))
    }
}

impl PartialEq for Sketches {
    fn eq(&self, other: &Self) -> bool {
        let answers = |s: &Self| ([0.0, 0.5, 0.95, 0.99, 1.0].map(|q| s.quantile(q)), s.distinct());
        answers(self) == answers(other)
    }
}

impl Sketches {
    /// Empty sketches of the kinds that are needed; `None` when none is.
    pub fn new(needs: Needs) -> Option<Box<Self>> {
        needs.any().then(|| {
            Box::new(Self {
                quantiles: needs.quantiles.then(|| DDSketch::new(Config::defaults())),
                distinct: needs.distinct.then(empty_hll),
            })
        })
    }

    /// Takes in one value of one device.
    pub fn add(&mut self, value: f64, device_id: &str) {
        if let Some(quantiles) = &mut self.quantiles {
            quantiles.add(value);
        }
        if let Some(distinct) = &mut self.distinct {
            distinct.update(device_id);
        }
    }

    /// Takes in another summary's sketches.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.quantiles, &other.quantiles) {
            (Some(mine), Some(theirs)) => {
                mine.merge(theirs).expect("every sketch is made with one configuration");
            }
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
        match (&mut self.distinct, &other.distinct) {
            (Some(mine), Some(theirs)) => {
                let mut union = HllUnion::new(LG_K).expect("the number of registers is in range");
                union.update(mine);
                union.update(theirs);
                *mine = union.to_sketch(HllType::Hll8);
            }
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
    }

    /// The q-quantile, within 1 % of its value; `None` without a quantile sketch.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.quantiles.as_ref()?.quantile(q).ok().flatten()
    }

    /// The estimated number of distinct devices; `None` without that sketch.
    pub fn distinct(&self) -> Option<u64> {
        self.distinct.as_ref().map(|sketch| sketch.composite_estimate().round() as u64)
    }

    /// The stored bytes: quantiles, distinct.
    pub fn encode(&self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        (
            self.quantiles.as_ref().map(DDSketch::to_java_bytes),
            self.distinct.as_ref().map(HllSketch::serialize),
        )
    }

    /// Reads stored bytes; `None` when both are absent.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when bytes are not such a sketch.
    pub fn decode(
        quantiles: Option<&[u8]>,
        distinct: Option<&[u8]>,
    ) -> Result<Option<Box<Self>>, DomainError> {
        if quantiles.is_none() && distinct.is_none() {
            return Ok(None);
        }
        let corrupt = |what, reason: String| DomainError::Decode { what, reason };
        let quantiles = quantiles
            .map(|bytes| {
                DDSketch::from_java_bytes(bytes)
                    .map_err(|error| corrupt("quantile sketch", error.to_string()))
            })
            .transpose()?;
        let distinct = distinct
            .map(|bytes| {
                HllSketch::deserialize(bytes).map_err(|error| corrupt("distinct sketch", error.to_string()))
            })
            .transpose()?;
        Ok(Some(Box::new(Self { quantiles, distinct })))
    }
}

fn empty_hll() -> HllSketch {
    HllSketch::new(LG_K, HllType::Hll8).expect("the number of registers is in range")
}
