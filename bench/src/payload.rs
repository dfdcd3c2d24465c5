//! What a record of the load tool carries: who sent it, its place in the order, when it should have been sent, a checksum.
//!
//! The first [`HEADER_BYTES`] of a value are the header, the rest is filler. The checksum covers every byte but its own:
//! first the filler, then the header, so that a sender computes the filler's part only once. All numbers are little
//! endian.
//!
//! ```text
//! 0        8          12          16         24            32       36
//! | run u64 | producer u32 | partition u32 | sequence u64 | intended ns u64 | crc32c u32 | filler ...
//! ```

/// Bytes of a value before its filler: the smallest record there can be.
pub const HEADER_BYTES: usize = 36;

const CRC_AT: usize = 32;

/// The fields of a value's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Tells runs over one topic apart.
    pub run: u64,
    /// Index of the producer within its run.
    pub producer: u32,
    /// Partition it was sent to.
    pub partition: u32,
    /// Counts the producer's records to this partition, from 0.
    pub sequence: u64,
    /// Monotonic time at which the schedule wanted it sent, in ns.
    pub intended_ns: u64,
}

/// Why a value is not one of ours, or no longer what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Shorter than a header.
    #[error("a value of {0} bytes is too short to be ours")]
    Short(usize),
    /// The checksum does not fit.
    #[error("the value's checksum is {found:#010x}, its bytes say {computed:#010x}")]
    Checksum {
        /// As it was sent.
        found: u32,
        /// Over the bytes that came back.
        computed: u32,
    },
}

/// Checksum of a value's filler: what [`Stamp::write`] starts from.
pub fn filler_crc(value: &[u8]) -> u32 {
    crc32c::crc32c(&value[HEADER_BYTES..])
}

/// Bytes that no codec can shrink, the same for the same seed.
pub fn fill(seed: u64, out: &mut [u8]) {
    let mut state = seed;
    for piece in out.chunks_mut(8) {
        let word = splitmix64(&mut state).to_le_bytes();
        piece.copy_from_slice(&word[..piece.len()]);
    }
}

/// A small generator for schedules and fillers (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
pub fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stamp {
    /// Writes the header over the start of `value`, whose filler has the checksum `filler_crc`.
    pub fn write(&self, value: &mut [u8], filler_crc: u32) {
        value[0..8].copy_from_slice(&self.run.to_le_bytes());
        value[8..12].copy_from_slice(&self.producer.to_le_bytes());
        value[12..16].copy_from_slice(&self.partition.to_le_bytes());
        value[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        value[24..32].copy_from_slice(&self.intended_ns.to_le_bytes());
        let crc = crc32c::crc32c_append(filler_crc, &value[..CRC_AT]);
        value[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a value's header and checks every byte of the value.
    pub fn read(value: &[u8]) -> Result<Stamp, PayloadError> {
        if value.len() < HEADER_BYTES {
            return Err(PayloadError::Short(value.len()));
        }
        let found = u32_at(value, CRC_AT);
        let computed = crc32c::crc32c_append(filler_crc(value), &value[..CRC_AT]);
        if found != computed {
            return Err(PayloadError::Checksum { found, computed });
        }
        Ok(Stamp {
            run: u64_at(value, 0),
            producer: u32_at(value, 8),
            partition: u32_at(value, 12),
            sequence: u64_at(value, 16),
            intended_ns: u64_at(value, 24),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(len: usize) -> (Vec<u8>, Stamp) {
        let stamp = Stamp { run: 7, producer: 3, partition: 11, sequence: 1 << 40, intended_ns: 99 };
        let mut value = vec![0; len];
        fill(5, &mut value);
        let crc = filler_crc(&value);
        stamp.write(&mut value, crc);
        (value, stamp)
    }

    #[test]
    fn stamp_comes_back_as_written() {
        for len in [HEADER_BYTES, HEADER_BYTES + 1, 100, 1024] {
            let (value, stamp) = value(len);
            assert_eq!(Stamp::read(&value), Ok(stamp), "{len} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (value, _) = value(100);
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Stamp::read(&bad), Err(PayloadError::Checksum { .. })), "bit {bit}");
        }
    }

    #[test]
    fn short_values_are_refused() {
        assert_eq!(Stamp::read(&[0; HEADER_BYTES - 1]), Err(PayloadError::Short(HEADER_BYTES - 1)));
    }
}
