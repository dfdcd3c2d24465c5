//! Drives fuzzers' entry points for a bounded time: random bytes, and mutations of valid inputs. The seed is fixed, so a
//! failure comes back; `MILLRACE_FUZZ_ITERATIONS` raises the number of inputs per decoder, and `MILLRACE_FUZZ_SEED` takes
//! other ones.

use super::Target;

const ITERATIONS: u64 = 4_000;
/// Longest random input: larger than every header, and a few blocks.
const RANDOM_BYTES_MAX: u64 = 9_000;
const MUTATIONS_MAX: u64 = 8;

/// Feeds every decoder its valid inputs, and inputs made from them; panics with the input that it does not stand.
pub fn run(targets: &[Target]) {
    targets.iter().for_each(fuzz);
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")),
        Err(_) => otherwise,
    }
}

/// xorshift64* (Vigna, An experimental exploration of Marsaglia's xorshift generators, scrambled, 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end.max(1)
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}

/// Numbers at which decoders that do not take care go wrong.
const EDGES: [i64; 9] = [0, 1, -1, 0x7f, 0x80, i32::MAX as i64, i32::MIN as i64, i64::MAX, i64::MIN];

fn mutate(random: &mut Random, data: &mut Vec<u8>) {
    // Half of the time at the front, where headers are: the rest may be padding.
    let reach = if random.below(2) == 0 { data.len().min(128) } else { data.len() };
    let at = random.index(reach);
    let rest = data.len() - at;
    match random.below(8) {
        _ if data.is_empty() => data.push(random.byte()),
        0 => data[at] ^= 1 << random.below(8),
        1 => data[at] = random.byte(),
        2 => data.truncate(at),
        3 => data.insert(at, random.byte()),
        4 => drop(data.remove(at)),
        5 => {
            let bytes = EDGES[random.index(EDGES.len())].to_be_bytes();
            let width = [1, 2, 4, 8][random.index(4)].min(rest);
            data[at..at + width].copy_from_slice(&bytes[8 - width..]);
        }
        6 => {
            let bytes = EDGES[random.index(EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][random.index(4)].min(rest);
            data[at..at + width].copy_from_slice(&bytes[..width]);
        }
        _ => {
            let from = random.index(data.len());
            let len = random.index(data.len() - from.max(at)).min(64);
            data.copy_within(from..from + len, at);
        }
    }
}

fn input(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.below(8) == 0 {
        let len = random.below(RANDOM_BYTES_MAX);
        return (0..len).map(|_| random.byte()).collect();
    }
    let mut data = seeds[random.index(seeds.len())].clone();
    for _ in 0..1 + random.below(MUTATIONS_MAX) {
        mutate(random, &mut data);
    }
    data
}

/// Feeds a decoder its valid inputs, then inputs made from them.
fn fuzz(target: &Target) {
    let iterations = from_environment("MILLRACE_FUZZ_ITERATIONS", ITERATIONS);
    let seed = from_environment("MILLRACE_FUZZ_SEED", 0x9E37_79B9_7F4A_7C15);
    let mut random = Random(seed ^ u64::from(crc32c::crc32c(target.name.as_bytes())) | 1);
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    seeds.iter().for_each(|seed| (target.run)(seed));
    for n in 0..iterations {
        let data = input(&mut random, &seeds);
        let caught = std::panic::catch_unwind(|| (target.run)(&data));
        if let Err(panic) = caught {
            eprintln!("{}: input {n} of seed {seed:#x}: {}", target.name, hex(&data));
            std::panic::resume_unwind(panic);
        }
    }
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}
