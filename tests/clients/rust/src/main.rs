//! Steps that users of rskafka and rdkafka take, one after the other: main HOST:PORT. Prints a line per step.

mod with_rdkafka;
mod with_rskafka;

use std::{fmt::Debug, future::Future, time::Duration};

/// Runs steps and remembers whether any failed.
#[derive(Debug, Clone)]
pub struct Steps {
    client: &'static str,
    /// The broker, as HOST:PORT.
    pub broker: String,
    /// Part of every topic's name, so that runs do not meet.
    pub run: String,
    failed: usize,
}

impl Steps {
    async fn step<F: Future<Output = anyhow::Result<()>>>(&mut self, name: &str, step: F) {
        let limit = Duration::from_secs(90);
        let result = tokio::time::timeout(limit, step).await;
        match result.unwrap_or_else(|_| Err(anyhow::anyhow!("not done after {limit:?}"))) {
            Ok(()) => println!("passed {}-{name}", self.client),
            Err(error) => {
                self.failed += 1;
                println!("FAILED {}-{name}\n    {}", self.client, format!("{error:#}").replace('\n', "\n    "));
            }
        }
    }

    fn topic(&self, name: &str) -> String {
        format!("{}-{}-{name}", self.client, self.run)
    }
}

fn expect<T: PartialEq + Debug>(actual: T, expected: T) -> anyhow::Result<()> {
    let cut = |value: &T| format!("{value:?}").chars().take(400).collect::<String>();
    anyhow::ensure!(actual == expected, "expected {}, got {}", cut(&expected), cut(&actual));
    Ok(())
}

#[tokio::main]
async fn main() {
    let broker = std::env::args().nth(1).expect("usage: HOST:PORT");
    let groups = std::env::var("CLIENT_GROUPS").is_ok_and(|value| value.contains("classic"));
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let run = format!("{:x}", nanos ^ u128::from(std::process::id()));
    let steps = |client| Steps { client, broker: broker.clone(), run: run.clone(), failed: 0 };
    let (mut first, mut second) = (steps("rskafka"), steps("rdkafka"));
    with_rskafka::all(&mut first).await;
    with_rdkafka::all(&mut second, groups).await;
    std::process::exit(i32::from(first.failed + second.failed > 0));
}
