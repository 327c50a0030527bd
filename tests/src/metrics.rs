//! What processes tell operators.

use std::time::Duration;

use musectl::cluster::LocalCluster;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A figure summed over the metrics of all parts whose name begins with `parts`; those that do not answer count nothing.
pub async fn sum(cluster: &LocalCluster, parts: &str, name: &str) -> f64 {
    let mut sum = 0.0;
    for (part, url) in cluster.ops_endpoints() {
        if !part.starts_with(parts) {
            continue;
        }
        let text = get(url.trim_start_matches("http://"), "/metrics").await;
        sum += text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>();
    }
    sum
}

/// The body of an answer; empty when there is none.
async fn get(address: &str, path: &str) -> String {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(text)) => text,
        _ => String::new(),
    }
}
