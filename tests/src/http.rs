//! HTTP requests of the tests.

use std::time::Duration;

use sidecar_kit::http::{Client, Limits};

const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 16 << 20 };

/// Sends a request with header fields and a body. Returns the status and the body.
///
/// # Errors
/// The reason on one line when there is no answer.
pub async fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<(u16, String), String> {
    let mut request = hyper::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.to_owned().into()).map_err(|error| error.to_string())?;
    let response = Client::plain().send(request, LIMITS).await;
    let response = response.map_err(|error| sidecar_kit::exit::one_line(&error))?;
    Ok((response.status.as_u16(), String::from_utf8_lossy(&response.body).into_owned()))
}

/// The body of a 200 answer.
///
/// # Errors
/// The reason on one line when there is none.
pub async fn get(url: &str) -> Result<String, String> {
    match request("GET", url, &[], "").await? {
        (200, body) => Ok(body),
        (status, body) => Err(format!("{url}: {status}: {body}")),
    }
}

/// The JSON body of a 200 answer.
///
/// # Errors
/// The reason on one line when there is none.
pub async fn get_json(url: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(&get(url).await?).map_err(|error| format!("{url}: {error}"))
}
