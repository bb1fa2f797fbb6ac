"""The vdit family: text to video, after Open-Sora-Plan v1.2 and Efficient-vDiT; a nano model, trained here."""
