//! How many readings each registered device has in a summary. Completeness of a group that spans devices is worked
//! out from it, so that one device that sends too much does not hide another that is silent.
//!
//! Exact and mergeable: counts of parts add up. Only devices of the registry are counted, by their numbers there, so
//! the size is bounded by the registry.
//!
//! Stability contract: the stored bytes are, for each device in ascending order of its number, the difference to the
//! number before (the first as it is) and the count, both as LEB128. Numbers mean nothing under another registry: its
//! fingerprint is stored with every summary.

use std::collections::BTreeMap;

use crate::DomainError;
use crate::registry::DeviceNumber;

/// The number of readings of each device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    readings: BTreeMap<DeviceNumber, u32>,
}

impl DeviceCounts {
    /// Counts one reading.
    pub fn add(&mut self, device: DeviceNumber) {
        let count = self.readings.entry(device).or_default();
        *count = count.saturating_add(1);
    }

    /// Takes in the counts of another part.
    pub fn merge(&mut self, other: &Self) {
        for (device, theirs) in &other.readings {
            let count = self.readings.entry(*device).or_default();
            *count = count.saturating_add(*theirs);
        }
    }

    /// How many readings a device has.
    pub fn of(&self, device: DeviceNumber) -> u32 {
        self.readings.get(&device).copied().unwrap_or_default()
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * self.readings.len());
        let mut before = 0;
        for (DeviceNumber(number), count) in &self.readings {
            put(&mut bytes, number - before);
            put(&mut bytes, *count);
            before = *number;
        }
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when the bytes are something else.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, DomainError> {
        let mut readings = BTreeMap::new();
        let mut number = 0u32;
        while !bytes.is_empty() {
            let step = take(&mut bytes).ok_or_else(|| corrupt("cut off"))?;
            number = number.checked_add(step).ok_or_else(|| corrupt("a number is too large"))?;
            let count = take(&mut bytes).ok_or_else(|| corrupt("cut off"))?;
            if readings.insert(DeviceNumber(number), count).is_some() {
                return Err(corrupt("a device is counted twice"));
            }
        }
        Ok(Self { readings })
    }
}

fn corrupt(reason: &str) -> DomainError {
    DomainError::Decode { what: "device counts", reason: reason.to_owned() }
}

fn put(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0u64;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(number).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(devices: &[u32]) -> DeviceCounts {
        let mut counts = DeviceCounts::default();
        devices.iter().for_each(|device| counts.add(DeviceNumber(*device)));
        counts
    }

    proptest! {
        #[test]
        fn parts_add_up_and_bytes_come_back(
            head in prop::collection::vec(prop_oneof![0u32..9, any::<u32>()], 0..40),
            tail in prop::collection::vec(0u32..9, 0..400),
        ) {
            let mut merged = counts(&head);
            merged.merge(&counts(&tail));
            prop_assert_eq!(&merged, &counts(&[head, tail].concat()));
            prop_assert_eq!(&DeviceCounts::decode(&merged.encode()).unwrap(), &merged);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(counts) = DeviceCounts::decode(&bytes) {
                prop_assert_eq!(DeviceCounts::decode(&counts.encode()).unwrap(), counts);
            }
        }
    }
}
