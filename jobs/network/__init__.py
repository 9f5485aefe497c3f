"""What leaves the machine: addresses, requests, objects behind URLs, and webhooks as they are sent."""
