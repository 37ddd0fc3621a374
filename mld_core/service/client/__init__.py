"""The team server's client.

`transport` sends requests, `api` knows the protocol, `uploader` brings a store's `sealed` ranks up, `helper`
does so beside a training, `remote` evaluates at the service. Open `api` first.
"""
